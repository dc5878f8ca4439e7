"""Evaluation: scores to ranks, ranks to metrics, and whether a difference is real."""

from mmkd.evaluation.baselines import ContentKNN, ItemKNN, Popularity, Transition
from mmkd.evaluation.evaluator import Evaluator
from mmkd.evaluation.metrics import (
    coverage_at_k,
    grouped_metrics,
    metrics_from_ranks,
    per_case,
    popularity_bias,
)
from mmkd.evaluation.offset import choose_offset
from mmkd.evaluation.ranking import CaseRanks, rank_and_ties, top_k
from mmkd.evaluation.retention import Retention, RetentionProbe
from mmkd.evaluation.significance import (
    bootstrap_intervals,
    compare,
    crossed_intervals,
    difference_interval,
    paired_permutation_test,
)
from mmkd.evaluation.teacher import teacher_worth
from mmkd.evaluation.weights import choose_weights

__all__ = [
    "CaseRanks",
    "ContentKNN",
    "Evaluator",
    "ItemKNN",
    "Popularity",
    "Retention",
    "RetentionProbe",
    "Transition",
    "bootstrap_intervals",
    "choose_offset",
    "choose_weights",
    "compare",
    "coverage_at_k",
    "crossed_intervals",
    "difference_interval",
    "grouped_metrics",
    "metrics_from_ranks",
    "paired_permutation_test",
    "per_case",
    "popularity_bias",
    "rank_and_ties",
    "teacher_worth",
    "top_k",
]
