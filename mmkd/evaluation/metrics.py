"""Metrics: ranks [N] to HR@k, NDCG@k and MRR@k, by how often the target trains; lists to coverage.

With one relevant item per case: HR@k = [rank <= k], NDCG@k = [rank <= k] / log2(1 + rank),
MRR@k = [rank <= k] / rank, each a mean over cases.

Ties. A target that shares its score with t other items could come at any of t + 1 whole ranks,
``rank - t/2 .. rank + t/2``; a case counts as its mean over them, which is its expectation when
tied items are put in random order. So a constant scorer gets exactly a random model's metrics.
Where the tie counts are not given, the fewest that explain a rank are assumed: none for a whole
rank, one for a half (10.5 counts as half a hit at 10); many-way ties then count as their middle
rank, which for a constant scorer is 0 at any small k, less than random and never more.

Slices, by the target's training events: cold has none, tail 1 to 5; head are the most popular
items that together make up half of all training events (whole popularity levels, so slightly more
than half where items tie), never below 6 events; mid is the rest. Warm is all but cold.

Recommended lists [N, k] have a coverage, and a popularity bias by several measures.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mmkd.errors import EvaluationError

CUTOFFS: tuple[int, ...] = (5, 10, 20)
SLICES: tuple[str, ...] = ("cold", "tail", "mid", "head")  # by training events, fewest first
TAIL_MOST = 5
_HEAD_SHARE = 0.5


def metrics_from_ranks(
    ranks: ArrayLike | torch.Tensor,
    ks: Sequence[int] = CUTOFFS,
    *,
    ties: ArrayLike | torch.Tensor | None = None,
) -> dict[str, float]:
    """Mean HR, NDCG and MRR at each cut-off.

    Args:
        ranks: [N] ranks from :func:`mmkd.evaluation.ranking.rank_and_ties`.
        ks: Cut-offs, each at least 1.
        ties: [N] how many other items share the target's score; None infers the fewest.

    Returns:
        ``{"HR@5": ..., "NDCG@5": ..., "MRR@5": ..., "HR@10": ...}``, values in 0..1.

    Raises:
        EvaluationError: if there is no case, or a rank, tie count or cut-off is impossible.
    """
    if len(_array(ranks)) == 0:
        raise EvaluationError("no case to evaluate: the split holds none, or all were filtered.")
    return {name: float(per_case(ranks, name, ties=ties).mean()) for name in metric_names(ks)}


def metric_names(ks: Sequence[int] = CUTOFFS) -> list[str]:
    """Names of the metrics at these cut-offs: HR, NDCG, MRR for each k in turn."""
    return [f"{name}@{k}" for k in ks for name in ("HR", "NDCG", "MRR")]


def per_case(
    ranks: ArrayLike | torch.Tensor,
    metric: str,
    *,
    ties: ArrayLike | torch.Tensor | None = None,
) -> NDArray[np.float64]:
    """One metric's value for every case; its mean is the metric.

    Args:
        ranks: [N] ranks.
        metric: ``HR@k``, ``NDCG@k`` or ``MRR@k``.
        ties: [N] tie counts, or None.

    Returns:
        [N] float64 in 0..1.

    Raises:
        EvaluationError: if the metric is unknown or a rank or tie count is impossible.
    """
    name, k = _parse(metric)
    rank = _array(ranks)
    tied = np.where(rank == np.floor(rank), 0.0, 1.0) if ties is None else _array(ties)
    _check(rank, tied)
    best = np.rint(rank - tied / 2.0).astype(np.int64)  # the lowest whole rank it may get
    worst = np.rint(rank + tied / 2.0).astype(np.int64)
    # total gain of ranks 1..j, j = 0..k: the mean over a run of ranks is a difference of two
    total = np.concatenate([[0.0], np.cumsum(_gain(name, np.arange(1, k + 1, dtype=np.float64)))])
    gained = total[np.minimum(worst, k)] - total[np.minimum(best - 1, k)]
    values: NDArray[np.float64] = gained / (worst - best + 1)
    return values


def grouped_metrics(
    ranks: NDArray[np.float64],
    target: NDArray[np.int64],
    train_counts: NDArray[np.int64],
    ks: Sequence[int] = CUTOFFS,
    *,
    ties: NDArray[np.int64] | None = None,
) -> dict[str, dict[str, float | int | None]]:
    """The metrics over all cases, and apart by how often the target trains.

    Args:
        ranks: [N] ranks.
        target: [N] the item each case is about.
        train_counts: [I+1] training events per item.
        ks: Cut-offs.
        ties: [N] tie counts, or None.

    Returns:
        For ``all``, ``warm`` and each slice ``n`` (its cases) and the metrics, None where it has no
        case. All are ranked in one catalogue, so ``all`` is the mean of ``warm`` and ``cold`` by
        their cases.

    Raises:
        EvaluationError: if ranks and targets differ in length, or a target is not an item.
    """
    _check_targets(ranks, target, train_counts)
    belongs = slice_of_items(train_counts)[target]
    groups = {"all": belongs >= 0, "warm": belongs > 0}
    groups |= {name: belongs == index for index, name in enumerate(SLICES)}
    return {name: _metrics_of(here, ranks, ks, ties) for name, here in groups.items()}


def slice_of_items(train_counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Slice of each item: index into ``SLICES``.

    Args:
        train_counts: [I+1] training events per item.

    Returns:
        [I+1] int64; row 0 (padding) means nothing.
    """
    edges = np.array([1, TAIL_MOST + 1, head_threshold(train_counts)])
    return np.searchsorted(edges, train_counts, side="right").astype(np.int64)


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
    last = int(np.searchsorted(np.cumsum(counts), _HEAD_SHARE * total))  # first to reach the share
    return max(TAIL_MOST + 1, int(counts[last]))


def coverage_at_k(items: ArrayLike | torch.Tensor, item_count: int) -> float:
    """Share of the catalogue that appears in at least one recommended list.

    Args:
        items: [N, k] recommended items; 0 marks an empty place.
        item_count: I, the number of items in the catalogue.

    Returns:
        A value in 0..1.

    Raises:
        EvaluationError: if the catalogue is empty or an item lies outside it.
    """
    if item_count < 1:
        raise EvaluationError(f"item_count is {item_count}; wanted at least 1.")
    shown = np.unique(_array(items).astype(np.int64))
    _check_listed(shown, item_count)
    return float(np.count_nonzero(shown)) / item_count


def popularity_bias(
    items: ArrayLike | torch.Tensor, train_counts: NDArray[np.int64]
) -> dict[str, float | None]:
    """How much recommended lists lean towards what trains often.

    * ``gini``: Gini coefficient of how often each item of the catalogue is listed; 0 where all are
      equally often, nearly 1 where few are. Shani and Gunawardana, Recommender Systems Handbook
      (2011).
    * ``popularity``: mean percentile of the listed items' training events: the share of the
      catalogue with fewer, and half of that with as many; 0.5 for random lists. It is the average
      recommendation popularity of Yin et al., VLDB 2012, made comparable between data sets.
    * ``head``: share of places taken by head items. One minus the average percentage of long tail
      items of Abdollahpouri et al., FLAIRS 2019 (arXiv:1901.07555), with ``head_threshold``.
    * ``cold``: share of places taken by items that never train.

    Args:
        items: [N, k] recommended items; 0 marks an empty place, which counts nowhere.
        train_counts: [I+1] training events per item.

    Returns:
        ``gini@k``, ``popularity@k``, ``head@k`` and ``cold@k``, each in 0..1; None where no item is
        listed.

    Raises:
        EvaluationError: if an item lies outside the catalogue.
    """
    lists = _array(items).astype(np.int64)
    _check_listed(lists, len(train_counts) - 1)
    names = [f"{name}@{lists.shape[1]}" for name in ("gini", "popularity", "head", "cold")]
    shown = lists[lists > 0]  # [M]
    if not len(shown):
        return dict.fromkeys(names)
    often = np.sort(np.bincount(shown, minlength=len(train_counts))[1:])  # [I]
    weight = 2 * np.arange(1, len(often) + 1) - len(often) - 1
    counts = train_counts[1:]
    ordered = np.sort(counts)
    below, upto = (np.searchsorted(ordered, counts, side=side) for side in ("left", "right"))
    percentile = (below + upto) / (2 * len(counts))  # [I]
    count = counts[shown - 1]  # [M]
    values = (
        (weight * often).sum() / (len(often) * often.sum()),
        percentile[shown - 1].mean(),
        (count >= head_threshold(train_counts)).mean(),
        (count == 0).mean(),
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _metrics_of(
    here: NDArray[np.bool_],
    ranks: NDArray[np.float64],
    ks: Sequence[int],
    ties: NDArray[np.int64] | None,
) -> dict[str, float | int | None]:
    """How many cases are here [N], and their metrics; None where there is none."""
    count: dict[str, float | int | None] = {"n": int(here.sum())}
    if not here.any():
        return count | dict.fromkeys(metric_names(ks))
    return count | metrics_from_ranks(ranks[here], ks, ties=None if ties is None else ties[here])


def _check_targets(
    ranks: NDArray[np.float64], target: NDArray[np.int64], train_counts: NDArray[np.int64]
) -> None:
    if ranks.shape != target.shape:
        raise EvaluationError(f"ranks {ranks.shape} and target {target.shape}; wanted both [N].")
    if len(target) > 0 and not (1 <= target.min() and target.max() < len(train_counts)):
        raise EvaluationError(
            f"targets span {target.min()}..{target.max()}; the catalogue has "
            f"1..{len(train_counts) - 1}."
        )


def _check_listed(items: NDArray[np.int64], item_count: int) -> None:
    if items.size and not (0 <= items.min() and items.max() <= item_count):
        raise EvaluationError(
            f"recommended items span {items.min()}..{items.max()}; the catalogue has "
            f"1..{item_count}."
        )


def _gain(name: str, rank: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a target at each whole rank is worth, inside the cut-off."""
    if name == "HR":
        return np.ones_like(rank)
    if name == "NDCG":
        discounted: NDArray[np.float64] = 1.0 / np.log2(1.0 + rank)
        return discounted
    return 1.0 / rank


def _parse(metric: str) -> tuple[str, int]:
    match = re.fullmatch(r"(HR|NDCG|MRR)@([1-9]\d*)", metric)
    if match is None:
        raise EvaluationError(
            f"unknown metric {metric!r}; wanted HR@k, NDCG@k or MRR@k with k >= 1, e.g. NDCG@10."
        )
    return match[1], int(match[2])


def _array(values: ArrayLike | torch.Tensor) -> NDArray[np.float64]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def _check(rank: NDArray[np.float64], tied: NDArray[np.float64]) -> None:
    if rank.ndim != 1 or tied.shape != rank.shape:
        raise EvaluationError(f"ranks {rank.shape} and ties {tied.shape}; wanted both [N].")
    low = rank - tied / 2.0
    wrong = ~(np.isfinite(rank) & np.isfinite(tied)) | (low < 1.0) | (low != np.floor(low))
    wrong |= (tied < 0.0) | (tied != np.floor(tied))
    if wrong.any():
        case = int(np.flatnonzero(wrong)[0])
        raise EvaluationError(
            f"case {case} has rank {rank[case]} with {tied[case]} ties; wanted "
            "1 + greater + ties / 2 in whole numbers, as rank_and_ties gives."
        )
