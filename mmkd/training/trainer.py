"""Trainer: a student, an objective and data to the best weights on validation.

``Trainer.fit`` builds what a training needs around them; ``_Run`` is the loop of one training:
epochs, steps, validation, checkpoints.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from mmkd.data import SequenceSplit
from mmkd.data.batches import BatchStream, batch_stream, seeded_generator
from mmkd.data.dataset import Dataset
from mmkd.data.soft_targets import SoftTargets
from mmkd.data.tasks import Batch, Task
from mmkd.distiller import CorrelationDistiller
from mmkd.errors import CheckpointError, TrainingError, TrainingInterrupted, outside
from mmkd.evaluation import Evaluator, Retention
from mmkd.files import file_digest, replacing
from mmkd.interruption import Interruption
from mmkd.losses.objective import LossBreakdown, Objective
from mmkd.student import Ensemble, Recommender
from mmkd.threads import thread_count, use_threads
from mmkd.training.arguments import TrainingArguments
from mmkd.training.checkpoint import CheckpointFolder, read_tensors, write_tensors
from mmkd.training.optimizer import (
    MODALITY_GROUP,
    AsynchronousUpdate,
    DecayTowardsStart,
    LearningRate,
    MemberUpdates,
    NoAsynchrony,
    build_optimizer,
)
from mmkd.training.progress import (
    TrainingProgress,
    check_installed,
    flat_record,
    gradient_norms,
    start_trackers,
)
from mmkd.training.step import TrainStep

TargetsOf = Callable[[Tensor, torch.Generator], Mapping[str, Any]]
Validate = Callable[[], Mapping[str, float]]
_BEST = "student.safetensors"
_KEPT_BEST = "checkpoints/best.safetensors"  # where a run goes on to change them
_RETRAIN = "put a copy of it back, or train from the start (--overwrite)"
# arguments that a resumed training may be given anew
_MAY_CHANGE = frozenset(
    "checkpoint_every_s cpu epochs patience threads trackers validate_every".split()
)


@dataclass
class TrainReport:
    """How a training went.

    Attributes:
        best_epoch: Epoch (from 0) of the kept weights; -1 before the first validation.
        best_metric: The selection metric there.
        bad_epochs: Validations since.
        seconds: Wall time spent in training and validation, over all resumed parts.
        history: One record an epoch: losses, validation metrics, learning rate, gradient norms.
        stopped: ``""`` while running, then ``early`` or ``epochs``.
        retention_at_start: How much of each teacher the student held before training.
    """

    best_epoch: int = -1
    best_metric: float = float("-inf")
    bad_epochs: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: str = ""
    retention_at_start: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Fits students.

    Six users walk along a circle of six items, and the student learns what comes next:

    >>> import numpy as np
    >>> from mmkd import FusedItemEmbedding, InteractionLog, NextItem, Objective, Recommender
    >>> from mmkd import SASRec, Softmax, Trainer, TrainingArguments
    >>> from mmkd.data import leave_one_out
    >>> user, step = np.divmod(np.arange(30), 5)
    >>> log = InteractionLog(user, (user + step) % 6 + 1, step.astype(float), tuple("abcdef"))
    >>> student = Recommender(
    ...     embedding=FusedItemEmbedding(item_count=6, width=8),
    ...     backbone=SASRec(width=8, max_length=5, layers=1, heads=2),
    ... )
    >>> trainer = Trainer(TrainingArguments(epochs=2, lr=0.05, cpu=True))
    >>> split = leave_one_out(log, item_count=6)
    >>> report = trainer.fit(student, Objective(Softmax()), split, task=NextItem())
    >>> report.stopped, len(report.history), sorted(report.history[-1]["losses"])
    ('epochs', 2, ['recommendation', 'total'])

    Args:
        arguments: Epochs, learning rate and the like; None takes the defaults.
    """

    def __init__(self, arguments: TrainingArguments | None = None) -> None:
        self.arguments = arguments or TrainingArguments()

    def fit(
        self,
        student: Recommender | Ensemble,
        objective: Objective,
        data: Dataset | SequenceSplit,
        *,
        task: Task,
        distiller: CorrelationDistiller | None = None,
        folder: Path | str | None = None,
        asynchronous: AsynchronousUpdate | Sequence[AsynchronousUpdate] | None = None,
        evaluator: Evaluator | None = None,
        teacher: Ensemble | None = None,
        soften: SoftTargets | None = None,
        accelerator: Accelerator | None = None,
        resume: bool = False,
        seed: int = 0,
    ) -> TrainReport:
        """Train until the epochs or the patience run out, and keep the best weights.

        Args:
            student: One network, or several; moved to the device and trained in place.
            objective: The loss.
            data: What to train and to validate on; of a data set its split is read.
            task: What the student predicts, ``NextItem`` or ``MaskedItem``.
            distiller: Fitted; the teacher of the objective's correlation losses, whose retention
                is measured too.
            folder: Gets ``student.safetensors`` (the best), ``checkpoints/`` and the trackers'
                files; None leaves no file behind.
            asynchronous: How the modality tables lag behind, of all members or one a member; None =
                not at all.
            evaluator: Of the validation metrics; None takes the defaults.
            teacher: A trained ensemble that the objective's compression holds the student to.
            soften: Shares every target with its teacher neighbours; its ``expected`` form needs the
                objective that was built with it.
            accelerator: Of ``accelerator()``; None builds one.
            resume: Continue from the folder's newest checkpoint, if there is one.
            seed: Of batches, dropout and what else is drawn; torch's generator is set by it.

        Returns:
            The report; ``student`` holds the best weights, in evaluation mode.

        Raises:
            TrainingError: The parts don't fit each other, or a tracker isn't installed.
            TrainingInterrupted: After SIGINT or SIGTERM, once a checkpoint is written.
            CheckpointError: The checkpoint doesn't fit.
        """
        arguments, evaluator = self.arguments, evaluator or Evaluator()
        split = data.split if isinstance(data, Dataset) else data
        ensemble = Ensemble.of(student)
        _check_parts(ensemble, split, objective, task, distiller, teacher)
        if folder is None and (resume or (arguments.trackers and accelerator is None)):
            wanted = "checkpoints to resume from" if resume else "the trackers' files"
            raise TrainingError(f"folder: got none, wanted a place for {wanted}; give fit a folder")
        with _kept_or_temporary(folder, accelerator or self.processes()) as place:
            own = accelerator is None
            processes = accelerator or self.accelerator(folder=place)
            if arguments.trackers and not processes.trackers:
                start_trackers(processes, name=place.name, config=asdict(arguments), folder=place)
            device, count = processes.device, processes.num_processes
            step = TrainStep(ensemble, objective, _frozen(teacher, device)).to(device)
            retention = Retention(distiller, seed=seed)
            at_start = retention(ensemble)
            stream = batch_stream(
                split,
                task,
                max_length=min(arguments.max_length, ensemble.max_length or arguments.max_length),
                batch_size=arguments.batch_size,
                seed=seed,
                device=device,
                rank=processes.process_index,
                world_size=count,
                accumulate=arguments.accumulate,
                clean=objective.clean,
                soften=soften,
            )
            correlations = distiller.to(device) if distiller and objective.correlation else None

            def targets(items: Tensor, generator: torch.Generator) -> Mapping[str, Any]:
                if correlations is None:
                    return {}
                return correlations.targets(items, generator=generator, share=1 / count)

            def validate() -> Mapping[str, float]:
                found = evaluator.ranks(
                    ensemble, split, split.valid, processes=processes, list_length=0
                )
                return evaluator.metrics(found) | retention(ensemble)

            # every process starts from the same weights and drops out different units
            torch.manual_seed(seed + processes.process_index)
            report = self.fit_step(
                step,
                stream,
                targets=targets,
                validate=validate,
                asynchronous=asynchronous or NoAsynchrony(),
                accelerator=processes,
                folder=place,
                resume=resume,
            )
            report.retention_at_start = at_start
            for tracker in processes.trackers if own else ():
                tracker.finish()
        return report

    def fit_step(
        self,
        step: TrainStep,
        stream: BatchStream,
        *,
        targets: TargetsOf,
        validate: Validate,
        asynchronous: AsynchronousUpdate | Sequence[AsynchronousUpdate],
        accelerator: Accelerator,
        folder: Path,
        resume: bool = False,
    ) -> TrainReport:
        """The inside of ``fit``, for a composition of one's own.

        Args:
            step: Already on the accelerator's device.
            stream: This process's rows of every batch.
            targets: Teacher targets of a batch's items; called without gradients.
            validate: Validation metrics of ``step.student`` as it is; called on every process.
            asynchronous: How the modality tables lag behind, of all members or one a member.
            accelerator: Device, precision and processes.
            folder: Gets ``student.safetensors`` (the best) and ``checkpoints/``.
            resume: Continue from the newest checkpoint, if there is one.

        Returns:
            The report; ``step`` holds the best weights.

        Raises:
            TrainingInterrupted: After SIGINT or SIGTERM, once a checkpoint is written.
            TrainingError: A loss is NaN or infinite.
            CheckpointError: The checkpoint doesn't fit.
        """
        if self.arguments.gradient_checkpointing:
            step.student.enable_gradient_checkpointing()
        run = _Run(self.arguments, step, stream, asynchronous, accelerator, folder)
        if resume:
            run.restore()
        with Interruption() as interruption:
            while not run.report.stopped:
                run.train_epoch(targets, interruption)
                run.close_epoch(validate)
                if not run.report.stopped:
                    run.pause(interruption)
        run.load_best()
        return run.report

    def accelerator(self, *, folder: Path) -> Accelerator:
        """Set this process's threads and build the accelerator.

        Args:
            folder: TensorBoard's files go below it.

        Raises:
            TrainingError: The device can't compute in the wanted precision, or a tracker isn't
                installed.
        """
        precision = self.arguments.precision
        if precision == "fp16" and not _has_accelerator():
            raise TrainingError(
                "training.precision: got fp16, which needs a GPU; use bf16 or no on a CPU"
            )
        check_installed(self.arguments.trackers)
        if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
            AcceleratorState._reset_state()  # or one notebook could not train in two precisions
        accelerator = Accelerator(
            # asked for by name, or several processes without a GPU would not find each other
            cpu=self._on_cpu,
            mixed_precision=precision,
            log_with=list(self.arguments.trackers) or None,
            project_dir=folder,
            step_scheduler_with_optimizer=False,
        )
        self._set_threads(accelerator.num_processes)
        return accelerator

    def processes(self) -> PartialState:
        """Set this process's threads; its device and its place among all, without a precision."""
        state = PartialState(cpu=self._on_cpu)
        self._set_threads(state.num_processes)
        return state

    @property
    def _on_cpu(self) -> bool:
        return self.arguments.cpu or not _has_accelerator()

    def _set_threads(self, processes: int) -> None:
        # processes that each take every core run many times slower than one after the other
        use_threads(self.arguments.threads or thread_count(processes))


@dataclass
class _Position:
    epoch: int = 0
    step: int = 0  # batches of this epoch already done
    optimizer_steps: int = 0
    train_seconds: float = 0.0  # of this epoch, with what came before a checkpoint


class _Run:
    """One training: its state and its steps."""

    def __init__(
        self,
        arguments: TrainingArguments,
        step: TrainStep,
        stream: BatchStream,
        asynchronous: AsynchronousUpdate | Sequence[AsynchronousUpdate],
        accelerator: Accelerator,
        folder: Path,
    ) -> None:
        self.arguments = arguments
        self.step = step
        self.stream = stream
        self.asynchronous = MemberUpdates(step.student, asynchronous)
        self.accelerator = accelerator
        self.folder = folder
        decay, self.towards = arguments.table_decay, None
        if arguments.decay_towards == "teacher":
            self.towards = DecayTowardsStart(
                step.student.modality_parameters(),
                decay=arguments.weight_decay if decay is None else decay,
            )
            decay = 0.0
        groups = self.asynchronous.groups(
            step.named_parameters(),
            lr=arguments.lr,
            weight_decay=arguments.weight_decay,
            table_decay=decay,
        )
        self.optimizer = build_optimizer(
            arguments.optimizer, groups, lr=arguments.lr, betas=arguments.betas
        )
        self.prepared, self.prepared_optimizer = accelerator.prepare(step, self.optimizer)
        self.batches = len(stream)
        self.learning_rate = LearningRate(
            lr=arguments.lr,
            schedule=arguments.schedule,
            warmup_steps=arguments.warmup_steps,
            total_steps=-(-self.batches // arguments.accumulate) * arguments.epochs,
            asynchronous=self.asynchronous.updates,
        )
        self.checkpoints = CheckpointFolder(
            folder / "checkpoints",
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        self.report = TrainReport()
        self.at = _Position()
        self.sums: dict[str, Tensor] = {}
        self.group: list[dict[str, Tensor]] = []  # losses of the batches since the last step
        self.gradient_norms: dict[str, float] = {}
        self.best_digest = ""  # of the best epoch's weights
        self.clock = self.saved = time.monotonic()
        self.progress = TrainingProgress(
            self.batches,
            epochs=arguments.epochs,
            metric=arguments.select_metric,
            shown=accelerator.is_main_process,
        )

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        newest = self.checkpoints.newest()
        if newest is None:
            return
        progress, state = self.checkpoints.load(newest, module=self.step, optimizer=self.optimizer)
        self._check_same(newest, progress.get("arguments"))
        with outside(
            CheckpointError,
            newest,
            "does not fit",
            remedy="resume as the run was started, or train from the start",
            also=(AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError),
        ):
            starts = {k: state.pop(k) for k in list(state) if k.startswith("start.")}
            self.asynchronous.load_state_dict(
                {k: v.to(self.accelerator.device) for k, v in state.items()}
            )
            if self.towards is not None and starts:  # earlier versions kept none
                self.towards.load_state_dict(starts)
            self._continue(progress)
        if self.report.best_epoch >= 0:
            self._check_best()

    def _continue(self, progress: Mapping[str, Any]) -> None:
        """Take up what a checkpoint's progress record holds."""
        self.report = TrainReport(**progress["report"])
        self.at = _Position(**progress["position"])
        self.best_digest = progress.get("best", "")  # release 0.1 kept none
        if self.report.stopped == "epochs" and self.at.epoch < self.arguments.epochs:
            self.report.stopped = ""  # more epochs are asked for than then
        self.sums = {
            k: torch.tensor(v, device=self.accelerator.device, dtype=torch.float64)
            for k, v in progress["sums"].items()
        }
        self.gradient_norms = progress["gradient_norms"]
        if self.accelerator.scaler is not None and progress["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(progress["scaler"])
        if not self.report.stopped:
            best = self.report.best_epoch
            self.progress.resumed(self.report.history, best, step=self.at.step)

    def _check_same(self, checkpoint: Path, then: Mapping[str, Any] | None) -> None:
        """Refuse to go on with arguments under which the kept state means something else."""
        now = _kept_arguments(self.arguments)
        if then is None:  # release 0.1 kept none
            return
        usual = _kept_arguments(TrainingArguments())  # of options that are younger than the run
        changed = sorted(name for name in now if (usual | dict(then))[name] != now[name])
        if not changed:
            return
        raise CheckpointError(
            f"{checkpoint}: written with another {', '.join(changed)}; resume with the arguments "
            "the run was started with, or train from the start"
        )

    def train_epoch(self, targets: TargetsOf, interruption: Interruption) -> None:
        """The batches of this epoch that are still to do."""
        self.prepared.train()
        at, every = self.at, self.arguments.accumulate
        first = at.step
        with self.progress.epoch(at.epoch, first=first):
            for batch in self.stream.epoch(at.epoch, first_step=first):
                group_start = at.step - at.step % every
                group = min(every, self.batches - group_start)
                ends_group = at.step + 1 == group_start + group
                with nullcontext() if ends_group else self.accelerator.no_sync(self.prepared):
                    self._backward(batch, targets, group)
                if ends_group:
                    self._check_finite()
                    self._optimizer_step()
                at.step += 1
                self.progress.advance(self.sums, at.step)
                # a checkpoint can't hold half an accumulated gradient
                if ends_group and at.step < self.batches:
                    self.pause(interruption)

    def _backward(self, batch: Batch, targets: TargetsOf, group: int) -> None:
        at = self.at
        with torch.no_grad():
            teacher = targets(batch.items, seeded_generator(self.stream.seed, at.epoch, at.step, 1))
        with self.accelerator.autocast():
            loss: LossBreakdown = self.prepared(batch, teacher)
        self.accelerator.backward(loss.total / group)
        losses = {"total": loss.total.detach(), **loss.parts}
        self.group.append(losses)
        for name, value in losses.items():
            value = value.to(torch.float64)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _check_finite(self) -> None:
        """End the run at losses or a gradient that are no numbers, before they reach the weights.

        All batches of a step are looked at together, for the processor waits for the device here.
        """
        group, self.group = self.group, []
        finite = torch.stack([losses["total"] for losses in group]).isfinite().all()
        if self.accelerator.scaler is None:  # fp16's leaves out a step whose gradient overflows
            gradients = [p.grad for p in self.step.parameters() if p.grad is not None]
            finite &= nn.utils.get_total_norm(gradients).isfinite()
        finite = finite.float()
        if self.accelerator.num_processes > 1:  # or one would end and the others wait for it
            finite = cast(Tensor, self.accelerator.reduce(finite, "mean"))
        if bool(finite == 1):
            return
        bad = [n for n, losses in enumerate(group) if not bool(losses["total"].isfinite())]
        losses = {name: float(value) for name, value in group[bad[0] if bad else -1].items()}
        step = self.at.step + 1 - (len(group) - 1 - bad[0] if bad else 0)
        parts = ", ".join(f"{k} {value:.4g}" for k, value in losses.items() if k != "total")
        kept = "there are no earlier ones"
        if self.report.best_epoch >= 0:
            kept = f"the best so far, of epoch {self.report.best_epoch + 1}, are kept"
        raise TrainingError(
            f"epoch {self.at.epoch + 1}, step {step}: the loss is {losses['total']:.4g} ({parts})"
            f"{'' if bad else ' and its gradient no number'}, so the weights were not changed; "
            f"{kept}; lower training.lr or the weight of the part that grew, set "
            "training.gradient_clip to 1, or set training.precision to no"
        )

    def _optimizer_step(self) -> None:
        at, arguments = self.at, self.arguments
        if self.accelerator.scaler is not None:
            self.accelerator.unscale_gradients(self.prepared_optimizer)
        if at.step + 1 == self.batches:
            self.gradient_norms = gradient_norms(self.step)
        # first, so that a gradient which takes no part in the step takes none in its norm
        self.asynchronous.before_step()
        if arguments.gradient_clip is not None:
            # not Accelerate's, which would divide by fp16's loss scale a second time
            nn.utils.clip_grad_norm_(self.step.parameters(), arguments.gradient_clip)
        self.learning_rate.apply(self.optimizer, step=at.optimizer_steps, epoch=at.epoch)
        if self.towards is not None:
            self.towards.before_step(self.optimizer)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad(set_to_none=True)
        at.optimizer_steps += 1

    def pause(self, interruption: Interruption) -> None:
        """Write a checkpoint when one is due; stop when asked to. All processes agree."""
        due = time.monotonic() - self.saved > self.arguments.checkpoint_every_s
        flags = torch.tensor(
            [float(interruption.requested), float(due and self.accelerator.is_main_process)]
        )
        if self.accelerator.num_processes > 1:  # alone it need not wait for the device
            flags = cast(Tensor, self.accelerator.reduce(flags.to(self.accelerator.device), "sum"))
        stop, save = (bool(flag) for flag in flags)
        if (stop or save) and self.at.step:  # at step 0 close_epoch has just saved
            self.save()
        if stop:
            raise TrainingInterrupted(self.at.epoch, self.folder)

    def close_epoch(self, validate: Validate) -> None:
        """Validate, record, decide whether to stop, and write a checkpoint."""
        report, at, arguments = self.report, self.at, self.arguments
        self._share_sums()
        record: dict[str, Any] = {
            "epoch": at.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "lr_modality": next(
                (g["lr"] for g in self.optimizer.param_groups if g["role"] == MODALITY_GROUP), None
            ),
            "losses": {k: float(v) / self.batches for k, v in self.sums.items()},
            "gradient_norms": self.gradient_norms,
        }
        record["train_seconds"] = round(at.train_seconds + self._lap(), 3)
        last = at.epoch + 1 >= arguments.epochs
        if (at.epoch + 1) % arguments.validate_every == 0 or last:
            self.step.eval()
            with torch.no_grad():
                record["valid"] = {k: float(v) for k, v in validate().items()}
            self._judge(record["valid"])
        record["valid_seconds"] = round(self._lap(), 3)
        report.history.append(record)
        if arguments.patience is not None and report.bad_epochs >= arguments.patience:
            report.stopped = "early"
        elif last:
            report.stopped = "epochs"
        self.sums = {}
        at.epoch, at.step, at.train_seconds = at.epoch + 1, 0, 0.0
        if self.accelerator.log_with:
            self.accelerator.log(flat_record(record), step=at.epoch)
        self.progress.closed(record, best=report.best_epoch == record["epoch"])
        self.save()

    def _judge(self, metrics: Mapping[str, float]) -> None:
        report, name = self.report, self.arguments.select_metric
        if name not in metrics:
            raise TrainingError(
                f"training.select_metric: got {name}, wanted one of {', '.join(metrics)}"
            )
        if metrics[name] > report.best_metric:
            report.best_metric, report.best_epoch = metrics[name], self.at.epoch
            report.bad_epochs = 0
            if self.accelerator.is_main_process:
                path = self.folder / _BEST
                write_tensors(path, self.step.student.state_dict())
                self.best_digest = file_digest(path)
            (self.best_digest,) = broadcast_object_list([self.best_digest])
        else:
            report.bad_epochs += 1

    def save(self) -> None:
        """Write a checkpoint; every process lays down its random state."""
        self.at.train_seconds += self._lap()
        self._share_sums()
        accelerator = self.accelerator
        staged = self.checkpoints.stage(self.at.epoch * self.batches + self.at.step)
        accelerator.wait_for_everyone()
        self.checkpoints.write_random_state(staged)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            scaler = accelerator.scaler
            self.checkpoints.commit(
                staged,
                module=self.step,
                optimizer=self.optimizer,
                asynchronous=self.asynchronous.state_dict()
                | ({} if self.towards is None else self.towards.state_dict()),
                progress={
                    "report": asdict(self.report),
                    "position": asdict(self.at),
                    "sums": {k: float(v) for k, v in self.sums.items()},
                    "gradient_norms": self.gradient_norms,
                    "arguments": _kept_arguments(self.arguments),
                    "best": self.best_digest,
                    "scaler": None if scaler is None else scaler.state_dict(),
                },
            )
        accelerator.wait_for_everyone()
        self.saved = time.monotonic()

    def load_best(self) -> None:
        """Put the best epoch's weights into the student."""
        path = self._check_best(self.best_digest)
        with outside(CheckpointError, path, "damaged", remedy=_RETRAIN, also=(RuntimeError,)):
            self.step.student.load_state_dict(read_tensors(path))
        self.accelerator.wait_for_everyone()
        if path != self.folder / _BEST and self.accelerator.is_main_process:
            _copy(path, self.folder / _BEST)
        self.step.eval()

    def _check_best(self, digest: str = "") -> Path:
        """Where the best epoch's weights are; CheckpointError where they are not, or altered.

        A run that is killed between its best weights and its checkpoint leaves later ones than the
        checkpoint tells of, which it then writes again; so they are compared only in the end.
        """
        path, kept = self.folder / _BEST, self.folder / _KEPT_BEST
        if digest and kept.is_file():
            with outside(CheckpointError, kept, "cannot be read", remedy=_RETRAIN):
                path = kept if file_digest(kept) == digest else path
        with outside(CheckpointError, path, "cannot be read", remedy=_RETRAIN):
            if digest and file_digest(path) != digest:
                raise CheckpointError(
                    f"{path}: damaged (altered, or of another run: not the best epoch's weights); "
                    f"{_RETRAIN}"
                )
            path.stat()
        return path

    def _share_sums(self) -> None:
        """Each process has its share of the global losses: take their mean."""
        if self.accelerator.num_processes > 1 and self.sums:
            mean = self.accelerator.reduce(torch.stack(list(self.sums.values())), "mean")
            self.sums = dict(zip(self.sums, cast(Tensor, mean).unbind(), strict=True))

    def _lap(self) -> float:
        now = time.monotonic()
        seconds, self.clock = now - self.clock, now
        self.report.seconds += seconds
        return seconds


def keep_best(folder: Path) -> None:
    """Copy a fit's best weights to its checkpoints, before other ones take their place.

    A run whose weights change once more after training, and which is stopped then, resumes from the
    copy.

    Args:
        folder: The fit's.

    Raises:
        CheckpointError: The copy can't be written.
    """
    _copy(folder / _BEST, folder / _KEPT_BEST)


def _copy(source: Path, target: Path) -> None:
    remedy = "free some space or choose another folder"
    with outside(CheckpointError, target, "can't be written", remedy=remedy):
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)


def _kept_arguments(arguments: TrainingArguments) -> dict[str, Any]:
    """What a checkpoint keeps of them, as JSON has it."""
    kept = {k: v for k, v in asdict(arguments).items() if k not in _MAY_CHANGE}
    return cast(dict[str, Any], json.loads(json.dumps(kept, default=str)))


def _check_parts(
    student: Ensemble,
    split: SequenceSplit,
    objective: Objective,
    task: Task,
    distiller: CorrelationDistiller | None,
    teacher: Ensemble | None,
) -> None:
    """Refuse parts that don't fit each other, before anything is computed."""
    if student.item_count != split.item_count:
        raise TrainingError(
            f"student: made for {student.item_count} items, but the data has {split.item_count}; "
            "build it for this catalogue"
        )
    if task.causal != student.causal:
        kind = "causal" if student.causal else "bidirectional"
        wanted = "NextItem" if student.causal else "MaskedItem"
        raise TrainingError(
            f"task: got {type(task).__name__}, wanted {wanted}: the student is {kind}; give that, "
            "or another backbone"
        )
    known = distiller.reduced if distiller else {}
    if missing := [name for name in objective.correlation if name not in known]:
        raise TrainingError(
            f"objective: has a correlation loss for {', '.join(missing)}, of which there is no "
            "teacher; give the distiller that was fitted on it"
        )
    if (objective.compression is None) != (teacher is None):
        got, lacks = ("teacher", "compression") if teacher else ("compression", "teacher")
        raise TrainingError(f"objective: got a {got}, but no {lacks}; give both or neither")


@contextmanager
def _kept_or_temporary(
    folder: Path | str | None, processes: Accelerator | PartialState
) -> Iterator[Path]:
    """The given folder; or one that all processes see, for as long as they train."""
    if folder is not None:
        yield Path(folder)
        return
    with TemporaryDirectory(prefix="mmkd-") as own:
        try:
            yield Path(broadcast_object_list([own])[0])
            processes.wait_for_everyone()
        except TrainingInterrupted as stop:
            raise TrainingInterrupted(stop.epoch, None) from None


def _frozen(teacher: Ensemble | None, device: torch.device) -> Ensemble | None:
    return teacher and teacher.to(device).eval().requires_grad_(False)


def _has_accelerator() -> bool:
    """Whether there is one that can compute everything; Apple's has no float64 for the ranks."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found is not None and found.type != "mps"
