"""The loop of one training: epochs, steps, validation, and the checkpoints that it goes on from."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from mmkd.data.batches import BatchStream, seeded_generator
from mmkd.data.tasks import Batch
from mmkd.errors import CheckpointError, TrainingError, TrainingInterrupted, outside
from mmkd.interruption import Interruption
from mmkd.training.arguments import TrainingArguments
from mmkd.training.checkpoint import BestWeights, CheckpointFolder
from mmkd.training.optimizer import MODALITY_GROUP, AsynchronousUpdate
from mmkd.training.progress import TrainingProgress, flat_record
from mmkd.training.step import Stepping, TrainStep

TargetsOf = Callable[[Tensor, torch.Generator], Mapping[str, Any]]
Validate = Callable[[], Mapping[str, float]]
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


@dataclass
class Position:
    """How far a training is."""

    epoch: int = 0
    step: int = 0  # batches of this epoch already done
    optimizer_steps: int = 0
    train_seconds: float = 0.0  # of this epoch, with what came before a checkpoint


class Loop:
    """One training: its state and its steps.

    Args:
        arguments: Epochs, learning rate and the like.
        step: Already on the accelerator's device.
        stream: This process's rows of every batch.
        asynchronous: How the modality tables lag behind, of all members or one a member.
        accelerator: Device, precision and processes.
        folder: Gets ``student.safetensors`` (the best) and ``checkpoints/``.
    """

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
        self.accelerator = accelerator
        self.folder = folder
        self.batches = len(stream)
        self.stepping = Stepping(
            arguments,
            step,
            asynchronous,
            accelerator,
            batches=self.batches,
            rows=stream.negatives is not None,
        )
        self.best = BestWeights(folder, accelerator)
        self.checkpoints = CheckpointFolder(
            folder / "checkpoints",
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            shards=step.student.shards,
        )
        self.report = TrainReport()
        self.at = Position()
        self.sums: dict[str, Tensor] = {}
        self.gradient_norms: dict[str, float] = {}
        self.clock = self.saved = time.monotonic()
        self.progress = TrainingProgress(
            self.batches,
            epochs=arguments.epochs,
            metric=arguments.select_metric,
            shown=accelerator.is_main_process,
        )

    def run(self, targets: TargetsOf, validate: Validate, *, resume: bool = False) -> TrainReport:
        """Train until the epochs or the patience run out.

        Args:
            targets: Teacher targets of a batch's items; called without gradients.
            validate: Validation metrics of the step's student; called on every process.
            resume: Continue from the newest checkpoint, if there is one.

        Returns:
            The report; the step holds the best weights, in evaluation mode.

        Raises:
            TrainingInterrupted: After SIGINT or SIGTERM, once a checkpoint is written.
            TrainingError: A loss is NaN or infinite.
            CheckpointError: The checkpoint doesn't fit.
        """
        if self.arguments.gradient_checkpointing:
            self.step.student.enable_gradient_checkpointing()
        if self.accelerator.is_main_process:
            self.checkpoints.drop_unfinished()
        if resume:
            self.restore()
        with Interruption() as interruption:
            while not self.report.stopped:
                self.train_epoch(targets, interruption)
                self.close_epoch(validate)
                if not self.report.stopped:
                    self.pause(interruption)
        self.best.load(self.step.student)
        self.step.eval()
        return self.report

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        newest = self.checkpoints.newest()
        if newest is None:
            return
        progress, state = self.checkpoints.load(
            newest, module=self.step, optimizer=self.stepping.optimizer
        )
        self._check_same(newest, progress.get("arguments"))
        with outside(
            CheckpointError,
            newest,
            "does not fit",
            remedy="resume as the run was started, or train from the start",
            also=(AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError),
        ):
            self.stepping.load_state_dict(state)
            self._continue(progress)
        if self.report.best_epoch >= 0:
            self.best.find()

    def _continue(self, progress: Mapping[str, Any]) -> None:
        """Take up what a checkpoint's progress record holds."""
        self.report = TrainReport(**progress["report"])
        self.at = Position(**progress["position"])
        self.best.digest = progress.get("best", "")  # release 0.1 kept none
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
        self.stepping.prepared.train()
        at, every = self.at, self.arguments.accumulate
        first = at.step
        with self.progress.epoch(at.epoch, first=first):
            for batch in self.stream.epoch(at.epoch, first_step=first):
                group_start = at.step - at.step % every
                group = min(every, self.batches - group_start)
                ends_group = at.step + 1 == group_start + group
                self._backward(batch, targets, group, last=ends_group)
                if ends_group:
                    self._optimizer_step()
                at.step += 1
                self.progress.advance(self.sums, at.step)
                # a checkpoint can't hold half an accumulated gradient
                if ends_group and at.step < self.batches:
                    self.pause(interruption)

    def _backward(self, batch: Batch, targets: TargetsOf, group: int, *, last: bool) -> None:
        at = self.at
        with torch.no_grad():
            teacher = targets(batch.items, seeded_generator(self.stream.seed, at.epoch, at.step, 1))
        for name, value in self.stepping.backward(batch, teacher, group=group, last=last).items():
            value = value.to(torch.float64)
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def _optimizer_step(self) -> None:
        at, best = self.at, self.report.best_epoch
        kept = "there are no earlier ones"
        if best >= 0:
            kept = f"the best so far, of epoch {best + 1}, are kept"
        self.stepping.check_finite(epoch=at.epoch, step=at.step, kept=kept)
        ends_epoch = at.step + 1 == self.batches
        norms = self.stepping.apply(step=at.optimizer_steps, epoch=at.epoch, measure=ends_epoch)
        self.gradient_norms = norms or self.gradient_norms
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
        groups = self.stepping.optimizer.param_groups
        record: dict[str, Any] = {
            "epoch": at.epoch,
            "lr": groups[0]["lr"],
            "lr_modality": next((g["lr"] for g in groups if g["role"] == MODALITY_GROUP), None),
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
            self.best.write(self.step.student)
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
        state: dict[str, Any] = {
            "module": self.step,
            "optimizer": self.stepping.optimizer,
            "asynchronous": self.stepping.state_dict(),
            "apart": self.stepping.by_row() if self.arguments.tables == "sharded" else (),
        }
        if state["apart"]:
            self.checkpoints.write_tables(staged, **state)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            scaler = accelerator.scaler
            self.checkpoints.commit(
                staged,
                **state,
                progress={
                    "report": asdict(self.report),
                    "position": asdict(self.at),
                    "sums": {k: float(v) for k, v in self.sums.items()},
                    "gradient_norms": self.gradient_norms,
                    "arguments": _kept_arguments(self.arguments),
                    "best": self.best.digest,
                    "scaler": None if scaler is None else scaler.state_dict(),
                },
            )
        accelerator.wait_for_everyone()
        self.saved = time.monotonic()

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


def _kept_arguments(arguments: TrainingArguments) -> dict[str, Any]:
    """What a checkpoint keeps of them, as JSON has it."""
    kept = {k: v for k, v in asdict(arguments).items() if k not in _MAY_CHANGE}
    return cast(dict[str, Any], json.loads(json.dumps(kept, default=str)))
