"""CaseRanks to a JSON-able report, and a comparison of two runs over the same cases."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmkd.data.splits import SequenceSplit
from mmkd.errors import EvaluationError
from mmkd.evaluation.metrics import (
    CUTOFFS,
    TAIL_MOST,
    coverage_at_k,
    head_threshold,
    metric_names,
    per_case,
    sliced_metrics,
)
from mmkd.evaluation.ranking import CaseRanks
from mmkd.evaluation.significance import bootstrap_intervals, paired_permutation_test


def summarise(
    ranks: CaseRanks,
    split: SequenceSplit,
    ks: Sequence[int] = CUTOFFS,
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> dict[str, Any]:
    """All figures of one evaluation.

    Args:
        ranks: All cases, merged over processes.
        split: Gives the training counts and the size of the catalogue.
        ks: Cut-offs.
        seed: Of the bootstrap.
        resamples: Of the bootstrap.

    Returns:
        ``n`` cases, ``users``, ``metrics`` {name: value}, ``intervals`` {name: [low, high]} at 95%,
        ``coverage@k`` of the recommended lists, ``slices`` {cold, tail, mid, head: {n, metrics}}
        and ``slice_edges`` (fewest training events of each slice).

    Raises:
        EvaluationError: if there is no case or a cut-off is impossible.
    """
    if len(ranks) == 0:
        raise EvaluationError("no case to evaluate: the split holds none, or all were filtered.")
    names = metric_names(ks)
    values = np.column_stack([per_case(ranks.rank, name, ties=ranks.ties) for name in names])
    ends = bootstrap_intervals(values, ranks.user, seed=seed, resamples=resamples)
    counts = split.train_counts()
    listed = ranks.top_items.shape[1]
    return {
        "n": len(ranks),
        "users": len(np.unique(ranks.user)),
        "metrics": dict(zip(names, values.mean(0).tolist(), strict=True)),
        "intervals": dict(zip(names, ends.tolist(), strict=True)),
        f"coverage@{listed}": coverage_at_k(ranks.top_items, split.item_count),
        "slices": sliced_metrics(ranks.rank, ranks.target, counts, ks, ties=ranks.ties),
        "slice_edges": {
            "cold": 0,
            "tail": 1,
            "mid": TAIL_MOST + 1,
            "head": head_threshold(counts),
        },
    }


def compare(
    first: CaseRanks,
    second: CaseRanks,
    *,
    metric: str = "NDCG@10",
    seed: int = 0,
    permutations: int = 10_000,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Is one run better than another on the same cases?

    Args:
        first: One run's cases.
        second: The other's.
        metric: Which metric to compare.
        seed: Of the bootstrap and the permutations.
        permutations: Of the test.
        resamples: Of the bootstrap interval of the difference.

    Returns:
        ``metric``, ``first``, ``second``, ``difference``, its 95% ``interval``, ``p_value``,
        ``users`` and ``permutations``.

    Raises:
        EvaluationError: if the runs evaluated different cases.
    """
    same = np.array_equal(first.case, second.case) and np.array_equal(first.user, second.user)
    if not same or not np.array_equal(first.target, second.target):
        raise EvaluationError(
            f"the runs evaluated different cases ({len(first)} and {len(second)}); compare runs of "
            "one data set, one split and one of valid or test."
        )
    a = per_case(first.rank, metric, ties=first.ties)
    b = per_case(second.rank, metric, ties=second.ties)
    test = paired_permutation_test(a, b, first.user, permutations=permutations, seed=seed)
    ends = bootstrap_intervals((a - b)[:, None], first.user, seed=seed, resamples=resamples)
    return {
        "metric": metric,
        "first": float(a.mean()),
        "second": float(b.mean()),
        "difference": test.difference,
        "interval": ends[0].tolist(),
        "p_value": test.p_value,
        "users": test.users,
        "permutations": test.permutations,
    }
