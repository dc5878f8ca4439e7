"""Cold, tail, mid and head by training count; warm beside cold."""

import json

import numpy as np
import pytest
from references.ranking import reference_metric

from mmkd.errors import EvaluationError
from mmkd.evaluation import grouped_metrics, metrics_from_ranks
from mmkd.evaluation.metrics import SLICES, head_threshold, slice_of_items

# items 1..7; 100 training events: 40 and 20 make up at least half
COUNTS = np.array([999, 0, 1, 5, 6, 28, 40, 20])


def test_items_fall_into_their_slices() -> None:
    assert head_threshold(COUNTS) == 28
    names = [SLICES[s] for s in slice_of_items(COUNTS)[1:]]
    assert names == ["cold", "tail", "tail", "mid", "head", "head", "mid"]


def test_head_takes_whole_popularity_levels() -> None:
    counts = np.array([0, 10, 10, 10, 10])
    assert head_threshold(counts) == 10
    assert set(slice_of_items(counts)[1:]) == {SLICES.index("head")}


def test_head_never_reaches_into_the_tail() -> None:
    assert head_threshold(np.array([0, 3, 2, 1])) == 6
    assert head_threshold(np.array([0, 0, 0])) == 6


def test_metrics_of_a_slice_are_the_metrics_of_the_cases_in_the_slice() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(2, 8, 200)  # none is cold
    ties = rng.integers(0, 6, 200)
    ranks = rng.integers(1, 25, 200) + ties / 2
    result = grouped_metrics(ranks, target, COUNTS, (5, 10), ties=ties)
    assert result["cold"] == {"n": 0, **dict.fromkeys(metrics_from_ranks([1], (5, 10)))}
    for name, members in {"tail": (2, 3), "mid": (4, 7), "head": (5, 6)}.items():
        here = np.isin(target, members)
        expected = metrics_from_ranks(ranks[here], (5, 10), ties=ties[here])
        assert result[name] == {"n": int(here.sum()), **expected}
    assert sum(int(result[name]["n"] or 0) for name in SLICES) == 200
    json.dumps(result, allow_nan=False)


def test_warm_and_cold_are_the_metrics_of_their_cases_and_make_up_all() -> None:
    rng = np.random.default_rng(1)
    target = rng.integers(1, 8, 200)  # item 1 never trains
    ties = rng.integers(0, 6, 200)
    ranks = rng.integers(1, 25, 200) + ties / 2
    result = grouped_metrics(ranks, target, COUNTS, (5, 10), ties=ties)
    assert list(result) == ["all", "warm", *SLICES]
    groups = {"all": [*range(1, 8)], "warm": [*range(2, 8)], "cold": [1]}
    for name, members in groups.items():
        here = [n for n in range(200) if target[n] in members]
        assert here and result[name]["n"] == len(here)
        for metric in ("HR", "NDCG", "MRR"):
            expected = reference_metric(metric, ranks[here].tolist(), ties[here].tolist(), 10)
            assert result[name][f"{metric}@10"] == pytest.approx(expected, rel=1e-12)
    hits = [float(result[name]["n"] or 0) * float(result[name]["HR@5"] or 0) for name in groups]
    assert hits[0] == pytest.approx(hits[1] + hits[2])
    json.dumps(grouped_metrics(np.ones(1), np.array([2]), COUNTS), allow_nan=False)  # none is cold


def test_a_target_outside_the_catalogue_is_an_error() -> None:
    with pytest.raises(EvaluationError, match=r"1\.\.7"):
        grouped_metrics(np.ones(1), np.array([8]), COUNTS)
