"""Trainer: a student, an objective and data to the best weights on validation.

``Trainer.fit`` builds what a training needs around them, and has the loop (`training/loop.py`) run.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from torch import Tensor

from mmkd.data import SequenceSplit
from mmkd.data.batches import BatchStream, Negatives
from mmkd.data.dataset import Dataset
from mmkd.data.soft_targets import SoftTargets
from mmkd.data.tasks import Task
from mmkd.distiller import CorrelationDistiller
from mmkd.errors import TrainingError, TrainingInterrupted
from mmkd.evaluation import Evaluator, Retention
from mmkd.losses.objective import Objective
from mmkd.student import Ensemble, Recommender
from mmkd.student.rows import TableShards, rows_of
from mmkd.threads import thread_count, use_threads
from mmkd.training.arguments import ROWS_FROM, Tables, TrainingArguments
from mmkd.training.loop import Loop, TrainReport
from mmkd.training.optimizer import AsynchronousUpdate, Interval, NoAsynchrony
from mmkd.training.progress import check_installed, start_trackers
from mmkd.training.step import TrainStep


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
                is measured too. Its reduced teachers are cut as the tables are.
            folder: Gets ``student.safetensors`` (the best), ``checkpoints/`` and the trackers'
                files; None leaves no file behind, and is refused where the tables are cut.
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
            The report; ``student`` holds the best weights, in evaluation mode. Of tables over
            processes each has its rows; ``student.safetensors`` has all.

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
            negatives = _negatives(arguments.tables, objective, split.item_count)
            if arguments.tables == "sharded":
                _shard(ensemble, device, asynchronous, kept=folder is not None)
            step = TrainStep(ensemble, objective, _frozen(teacher, device)).to(device)
            retention = Retention(distiller, seed=seed)
            shards = ensemble.shards
            if shards is not None and distiller is not None:
                distiller.cut(shards.cut)
            at_start = retention(ensemble)
            stream = BatchStream(
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
                negatives=negatives,
            )
            valid = evaluator.sample(split.valid)
            correlations = distiller.to(device) if distiller and objective.correlation else None

            def targets(items: Tensor, generator: torch.Generator) -> Mapping[str, Any]:
                if correlations is None:
                    return {}
                rows = None
                if shards is not None:
                    rows = shards.rows(torch.unique(F.pad(items.flatten(), (1, 0))))
                return correlations.targets(items, generator=generator, share=1 / count, rows=rows)

            def validate() -> Mapping[str, float]:
                found = evaluator.ranks(ensemble, split, valid, processes=processes, list_length=0)
                return evaluator.metrics(found) | retention(ensemble)

            # every process starts from the same weights and drops out different units
            torch.manual_seed(seed + processes.process_index)
            loop = Loop(arguments, step, stream, asynchronous or NoAsynchrony(), processes, place)
            report = loop.run(targets, validate, resume=resume)
            report.retention_at_start = at_start
            for tracker in processes.trackers if own else ():
                tracker.finish()
        return report

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
    known = distiller.teachers if distiller else {}
    if missing := [name for name in objective.correlation if name not in known]:
        raise TrainingError(
            f"objective: has a correlation loss for {', '.join(missing)}, of which there is no "
            "teacher; give the distiller that was fitted on it"
        )
    for name, reduced in known.items():
        if len(reduced) != split.item_count + 1:
            raise TrainingError(
                f"distiller: has {len(reduced)} rows of {name}, wanted {split.item_count + 1}, of "
                "all items and the padding; a fit with tables over processes leaves a part: fit "
                "the distiller again"
            )
    if (objective.compression is None) != (teacher is None):
        got, lacks = ("teacher", "compression") if teacher else ("compression", "teacher")
        raise TrainingError(f"objective: got a {got}, but no {lacks}; give both or neither")


def _negatives(tables: Tables, objective: Objective, item_count: int) -> Negatives | None:
    """What draws a batch's negatives, where only its rows and theirs are to step."""
    sampled = objective.sampled
    if tables in ("rows", "sharded") and sampled is None:
        raise TrainingError(
            f"training.tables: got {tables}, but the recommendation loss, "
            f"{type(objective.recommendation).__name__}, reads every item; choose a sampled one, "
            "such as sampled_softmax, or set it to dense"
        )
    rows = tables in ("rows", "sharded") or (tables == "auto" and item_count > ROWS_FROM)
    return sampled.draw if sampled is not None and rows else None


def _shard(
    student: Ensemble,
    device: torch.device,
    asynchronous: AsynchronousUpdate | Sequence[AsynchronousUpdate] | None,
    *,
    kept: bool,
) -> None:
    """Cut the item tables over the processes, of which one alone keeps them whole."""
    updates = asynchronous if isinstance(asynchronous, Sequence) else [asynchronous]
    if any(isinstance(update, Interval) for update in updates):
        raise TrainingError(
            "training.tables: got sharded, with an asynchronous update that collects the gradients "
            "of rows (interval); use ramp, frozen or none, or set tables to rows"
        )
    shards = student.shards or table_shards(student.item_count, device)
    if shards is not None and not kept:
        raise TrainingError(
            "folder: got none, wanted a place for the whole student, of which each process keeps "
            "some rows (training.tables: sharded); give fit a folder"
        )
    if shards is not None and student.shards is None:
        student.shard(shards)


def table_shards(item_count: int, device: torch.device) -> TableShards | None:
    """How ``training.tables: sharded`` cuts the tables; None where one process has them whole.

    All processes call it.

    Raises:
        TrainingError: A process would have no item.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if (count := torch.distributed.get_world_size()) < 2:
        return None
    if rows_of(count - 1, count, item_count + 2)[0] > item_count:
        raise TrainingError(
            f"training.tables: got sharded, but {item_count} items are too few for {count} "
            "processes; set it to rows"
        )
    return TableShards(item_count, device)


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


def bf16_in_hardware() -> bool:
    """Whether this CPU has instructions for bf16, so that it isn't slower than float32."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"))


def slow_precision(accelerator: Accelerator) -> str | None:
    """What is to be said of a precision that this machine only emulates; None if there is none."""
    on_cpu = accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16"
    if not on_cpu or bf16_in_hardware():
        return None
    return (
        "precision: got bf16, for which this CPU has no instructions (avx512_bf16, AMX): steps may "
        "take ten times as long as with precision: no, for the same figures"
    )
