"""Metrics by how often the target occurred in training: cold, tail, mid, head.

* cold: 0 training events; tail: 1 to 5.
* head: the most popular items that together make up half of all training events (whole
  popularity levels, so slightly more than half where items tie), never below 6 events.
* mid: the rest.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmkd.evaluation.errors import EvaluationError
from mmkd.evaluation.metrics import CUTOFFS, metric_names, metrics_from_ranks

TAIL_MOST = 5
HEAD_SHARE = 0.5
SLICES: tuple[str, ...] = ("cold", "tail", "mid", "head")


def head_threshold(train_counts: NDArray[np.int64]) -> int:
    """Fewest training events of a head item.

    Args:
        train_counts: [I+1] training events per item; row 0 (padding) is ignored.

    Returns:
        The count from which an item belongs to the head, at least 6.
    """
    counts = np.sort(train_counts[1:])[::-1]
    total = int(counts.sum())
    if total == 0:
        return TAIL_MOST + 1
    last = int(np.searchsorted(np.cumsum(counts), HEAD_SHARE * total))  # first to reach the share
    return max(TAIL_MOST + 1, int(counts[last]))


def slice_of_items(train_counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Slice of each item: index into ``SLICES``.

    Args:
        train_counts: [I+1] training events per item.

    Returns:
        [I+1] int64; row 0 (padding) means nothing.
    """
    edges = np.array([1, TAIL_MOST + 1, head_threshold(train_counts)])
    return np.searchsorted(edges, train_counts, side="right").astype(np.int64)


def sliced_metrics(
    ranks: NDArray[np.float64],
    target: NDArray[np.int64],
    train_counts: NDArray[np.int64],
    ks: Sequence[int] = CUTOFFS,
    *,
    ties: NDArray[np.int64] | None = None,
) -> dict[str, dict[str, float | int | None]]:
    """The metrics over each slice's cases.

    Args:
        ranks: [N] ranks.
        target: [N] the item each case is about.
        train_counts: [I+1] training events per item.
        ks: Cut-offs.
        ties: [N] tie counts, or None.

    Returns:
        For each slice ``n`` (its cases) and the metrics, None where it has no case.

    Raises:
        EvaluationError: if ranks and targets differ in length, or a target is not an item.
    """
    if ranks.shape != target.shape:
        raise EvaluationError(f"ranks {ranks.shape} and target {target.shape}; wanted both [N].")
    if len(target) > 0 and not (1 <= target.min() and target.max() < len(train_counts)):
        raise EvaluationError(
            f"targets span {target.min()}..{target.max()}; the catalogue has "
            f"1..{len(train_counts) - 1}."
        )
    belongs = slice_of_items(train_counts)[target]
    result: dict[str, dict[str, float | int | None]] = {}
    for index, name in enumerate(SLICES):
        here = belongs == index
        result[name] = {"n": int(here.sum())}
        if here.any():
            tied = None if ties is None else ties[here]
            result[name].update(metrics_from_ranks(ranks[here], ks, ties=tied))
        else:
            result[name].update(dict.fromkeys(metric_names(ks)))
    return result
