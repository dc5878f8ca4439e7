"""Naive ranking and metrics: one candidate at a time, straight from the definitions."""

import math
from collections.abc import Collection, Sequence


def reference_rank(
    scores: Sequence[float], target: int, excluded: Collection[int] = ()
) -> tuple[float, int]:
    """Rank of the target among items 1..I, and how many others tie with it."""
    greater = ties = 0
    for item in range(1, len(scores)):
        if item == target or item in excluded:
            continue
        if scores[item] > scores[target]:
            greater += 1
        elif scores[item] == scores[target]:
            ties += 1
    return 1 + greater + ties / 2, ties


def reference_gain(metric: str, rank: int, k: int) -> float:
    """Worth of a target at a whole rank."""
    if rank > k:
        return 0.0
    return {"HR": 1.0, "NDCG": 1.0 / math.log2(1 + rank), "MRR": 1.0 / rank}[metric]


def reference_metric(metric: str, ranks: Sequence[float], ties: Sequence[int], k: int) -> float:
    """Mean over cases of the mean over every place the tied target could get."""
    total = 0.0
    for rank, tied in zip(ranks, ties, strict=True):
        best = round(rank - tied / 2)
        places = range(best, best + tied + 1)
        total += sum(reference_gain(metric, place, k) for place in places) / len(places)
    return total / len(ranks)
