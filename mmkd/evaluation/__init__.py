"""Evaluation: scores to ranks, ranks to metrics, and whether a difference is real."""

from mmkd.errors import EvaluationError
from mmkd.evaluation.evaluator import evaluate_cases
from mmkd.evaluation.metrics import (
    CUTOFFS,
    SLICES,
    coverage_at_k,
    head_threshold,
    metric_names,
    metrics_from_ranks,
    per_case,
    slice_of_items,
    sliced_metrics,
)
from mmkd.evaluation.ranking import CaseRanks, gather, merge, rank_and_ties, rank_targets, top_k
from mmkd.evaluation.report import compare, summarise
from mmkd.evaluation.retention import RetentionProbe
from mmkd.evaluation.significance import PairedTest, bootstrap_intervals, paired_permutation_test

__all__ = [
    "CUTOFFS",
    "SLICES",
    "CaseRanks",
    "EvaluationError",
    "PairedTest",
    "RetentionProbe",
    "bootstrap_intervals",
    "compare",
    "coverage_at_k",
    "evaluate_cases",
    "gather",
    "head_threshold",
    "merge",
    "metric_names",
    "metrics_from_ranks",
    "paired_permutation_test",
    "per_case",
    "rank_and_ties",
    "rank_targets",
    "slice_of_items",
    "sliced_metrics",
    "summarise",
    "top_k",
]
