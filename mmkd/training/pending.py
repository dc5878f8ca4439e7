"""Shims until tasks, evaluator and retention have their agreed interfaces; goes at the merge."""

from typing import Any

from accelerate import Accelerator, PartialState

from mmkd.data import Cases, SequenceSplit
from mmkd.data.batches import BatchStream
from mmkd.distiller import CorrelationDistiller
from mmkd.evaluation.evaluator import Evaluator
from mmkd.evaluation.ranking import CaseRanks
from mmkd.evaluation.retention import RetentionProbe
from mmkd.losses.supervision import Supervision as Task
from mmkd.student import Ensemble
from mmkd.student.ensemble import scorer

__all__ = ["Retention", "Task", "batch_stream", "ranks"]


def batch_stream(split: SequenceSplit, task: Task, **options: Any) -> BatchStream:
    """Of data/batches.py."""
    return task.stream(split, **options)


def ranks(
    evaluator: Evaluator,
    student: Ensemble,
    split: SequenceSplit,
    cases: Cases,
    *,
    processes: Accelerator | PartialState,
    list_length: int,
    max_length: int,
) -> CaseRanks:
    """``evaluator.ranks(student, split, cases, ...)``."""
    return evaluator.ranks(
        scorer(student, item_count=split.item_count, max_length=max_length),
        split,
        cases,
        max_length=max_length,
        device=processes.device,
        rank=processes.process_index,
        world_size=processes.num_processes,
        list_length=list_length,
    )


def longest(student: Ensemble) -> int | None:
    """``student.max_length``."""
    found: int | None = getattr(student.networks[0].backbone, "max_length", None)
    return found


class Retention:
    """Of evaluation/retention.py."""

    def __init__(self, distiller: CorrelationDistiller, *, seed: int) -> None:
        self.probes = {
            name: RetentionProbe(teacher=teacher, present=distiller.present[name], seed=seed)
            for name, teacher in distiller.reduced.items()
        }

    def __call__(self, student: Ensemble) -> dict[str, float]:
        """Measure."""
        return {
            f"retention.{name}.{figure}": value
            for name, probe in self.probes.items()
            for figure, value in probe.measure(student.vectors(name)[:-1]).items()
        }
