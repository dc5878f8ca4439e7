"""Offset: validation cases to the place of untrained items among the others.

No loss compares an item that never trains with those that do: its scores come from its content
alone, and may lie above or below all others. One number for all of them, in standard deviations of
a list's scores, is chosen where the cases on both together rank best.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mmkd.data.splits import Cases, SequenceSplit
from mmkd.errors import refuse, within
from mmkd.evaluation.evaluator import Evaluator, Processes
from mmkd.evaluation.weights import gains, some_of
from mmkd.student import Ensemble
from mmkd.student.recommender import prompt
from mmkd.student.scores import BlockScores

OFFSETS = tuple(step / 4 for step in range(-16, 13))  # -4 to 3


def choose_offset(
    student: Ensemble,
    split: SequenceSplit,
    cases: Cases,
    *,
    evaluator: Evaluator | None = None,
    metric: str = "NDCG@10",
    price: float = 0.0,
    processes: Processes | None = None,
) -> tuple[float, list[dict[str, float]]]:
    """The offset of untrained items that ranks the cases best, and what each one costs.

    >>> import numpy as np
    >>> import torch
    >>> from mmkd import Ensemble, FusedItemEmbedding, GRU4Rec, Recommender, SequenceSplit
    >>> from mmkd.data import Cases
    >>> from mmkd.evaluation import choose_offset
    >>> last = Cases(user=np.array([0]), position=np.array([2]))
    >>> split = SequenceSplit(
    ...     items=np.array([1, 2, 3]), offsets=np.array([0, 3]), train_end=np.array([2]),
    ...     valid=last, test=last, item_count=9)
    >>> table = FusedItemEmbedding(item_count=9, width=4)
    >>> member = Recommender(embedding=table, backbone=GRU4Rec(width=4))
    >>> student = Ensemble([member], untrained_offset=0.0)
    >>> _ = student.untrained.copy_(torch.arange(1, 10) > 2)
    >>> offset, curve = choose_offset(student, split, last)
    >>> sorted(curve[0])
    ['all', 'cold', 'offset', 'warm']

    Args:
        student: Trained networks with an offset, which is not read.
        split: Where the events are; items without a training event are the untrained ones.
        cases: Those to choose by: the validation's, never the test's.
        evaluator: Which candidates there are; None takes the defaults.
        metric: Higher is better.
        price: Share of the best metric over all cases that may be given up for the cases on
            untrained items: of the offsets that cost no more, the one where those rank best.
        processes: Who shares the cases; None for this process alone.

    Returns:
        The offset, 0 where no case asks for an untrained item, and by offset the metric over all
        cases, over those on trained and over those on untrained items.

    Raises:
        ValueError: ``price`` is out of range.
        EvaluationError: A score is NaN.
    """
    refuse(within(0, 1, "it is a share", price=price))

    def moved(histories: Tensor) -> Iterator[Tensor | BlockScores]:
        if student.shards is not None:
            by_blocks = BlockScores.after(student, histories)
            for offset in OFFSETS:
                yield by_blocks.varied(
                    weights=None, offset=torch.tensor(offset, device=histories.device)
                )
            return
        outputs = student(prompt(student, histories))
        hidden = [out.hidden[:, -1] for out in outputs]
        scores = student.combined(hidden, [out.item_matrix for out in outputs])
        step = student.moved(scores, 1.0)
        for offset in OFFSETS:
            yield torch.add(scores, step, alpha=offset)

    sums, counts = gains(
        student,
        moved,
        len(OFFSETS),
        split,
        some_of(cases),
        evaluator or Evaluator(),
        metric,
        processes,
    )
    if not counts[1]:
        return 0.0, []
    every = sums.sum(1) / counts.sum()
    warm, cold = sums[:, 0] / max(counts[0], 1), sums[:, 1] / counts[1]
    may = [n for n in range(len(OFFSETS)) if every[n] >= (1 - price) * every.max()]
    best = max(may, key=lambda n: (cold[n], every[n], -abs(OFFSETS[n])))
    curve = [
        {"offset": offset, "all": float(a), "warm": float(w), "cold": float(c)}
        for offset, a, w, c in zip(OFFSETS, every, warm, cold, strict=True)
    ]
    return OFFSETS[best], curve
