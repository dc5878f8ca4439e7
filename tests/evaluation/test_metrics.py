"""HR, NDCG and MRR against the definitions, hand-worked figures and ranx."""

import math

import numpy as np
import pytest
import torch
from references.ranking import reference_metric

from mmkd.errors import EvaluationError
from mmkd.evaluation import (
    coverage_at_k,
    metrics_from_ranks,
    per_case,
    popularity_bias,
    rank_and_ties,
)


def test_hand_worked_metrics() -> None:
    metrics = metrics_from_ranks([1, 3, 5, 6, 100], ks=(5, 10))
    ndcg_5 = (1 + 1 / 2 + 1 / math.log2(6)) / 5
    assert metrics == pytest.approx(
        {
            "HR@5": 3 / 5,
            "NDCG@5": ndcg_5,
            "MRR@5": (1 + 1 / 3 + 1 / 5) / 5,
            "HR@10": 4 / 5,
            "NDCG@10": ndcg_5 + 1 / math.log2(7) / 5,
            "MRR@10": (1 + 1 / 3 + 1 / 5 + 1 / 6) / 5,
        }
    )
    assert list(metrics) == ["HR@5", "NDCG@5", "MRR@5", "HR@10", "NDCG@10", "MRR@10"]


def test_metrics_match_the_definitions_with_ties() -> None:
    rng = np.random.default_rng(0)
    ties = rng.integers(0, 40, 300)
    ranks = rng.integers(1, 30, 300) + ties / 2
    metrics = metrics_from_ranks(ranks, ks=(1, 5, 10, 20), ties=ties)
    for name, value in metrics.items():
        kind, k = name.split("@")
        expected = reference_metric(kind, ranks.tolist(), ties.tolist(), int(k))
        assert value == pytest.approx(expected, abs=1e-12)
        assert per_case(ranks, name, ties=ties).mean() == value


def test_metrics_match_ranx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling ranx takes a minute
    import ranx

    g = torch.Generator().manual_seed(0)
    scores = torch.randn(60, 101, generator=g, dtype=torch.float64)  # no ties
    target = torch.randint(1, 101, (60,), generator=g)
    row = torch.randint(0, 60, (500,), generator=g)
    item = torch.randint(1, 101, (500,), generator=g)
    ranks, _ = rank_and_ties(scores, target, exclude_row=row, exclude_item=item)
    seen = set(zip(row.tolist(), item.tolist(), strict=True))
    run = {
        f"q{case}": {
            f"i{i}": float(scores[case, i])
            for i in range(1, 101)
            if (case, i) not in seen or i == target[case]
        }
        for case in range(60)
    }
    qrels = {f"q{case}": {f"i{int(target[case])}": 1} for case in range(60)}
    ours = metrics_from_ranks(ranks)
    theirs = ranx.evaluate(
        ranx.Qrels(qrels),
        ranx.Run(run),
        [f"{name}@{k}" for k in (5, 10, 20) for name in ("hit_rate", "ndcg", "mrr")],
    )
    assert list(ours.values()) == pytest.approx(list(theirs.values()), abs=1e-9)
    assert 0 < ours["HR@5"] < ours["HR@20"] < 1


def test_constant_scorer_ranks_like_random() -> None:
    items = 50
    target = torch.arange(1, items + 1)
    ranks, ties = rank_and_ties(torch.zeros(items, items + 1), target)
    constant = metrics_from_ranks(ranks, ties=ties)
    # a random order puts each target at every rank equally often
    everywhere = metrics_from_ranks(np.arange(1, items + 1))
    assert constant == pytest.approx(everywhere, abs=1e-12)
    assert constant["HR@10"] == pytest.approx(10 / items)
    # and without the tie counts it never looks better than random
    unknown = metrics_from_ranks(ranks)
    assert all(unknown[name] <= everywhere[name] for name in everywhere)


def test_a_half_rank_counts_as_the_mean_of_its_two_places() -> None:
    metrics = metrics_from_ranks([10.5], ks=(10, 20))
    assert metrics["HR@10"] == 0.5
    assert metrics["MRR@10"] == pytest.approx(0.05)
    assert metrics["MRR@20"] == pytest.approx((1 / 10 + 1 / 11) / 2)
    assert metrics == metrics_from_ranks(torch.tensor([10.5]), (10, 20), ties=torch.tensor([1]))


@pytest.mark.parametrize("rank", [0.0, 0.5, 2.25, math.nan, math.inf])
def test_impossible_ranks_are_errors(rank: float) -> None:
    with pytest.raises(EvaluationError, match="case 1 has rank"):
        metrics_from_ranks([1.0, rank])


def test_impossible_requests_are_errors() -> None:
    with pytest.raises(EvaluationError, match="no case"):
        metrics_from_ranks([])
    for metric in ("NDCG@0", "ndcg@10", "Recall@10", "HR"):
        with pytest.raises(EvaluationError, match="unknown metric"):
            per_case([1.0], metric)
    with pytest.raises(EvaluationError, match=r"with 3\.0 ties"):
        per_case([2.0], "HR@5", ties=[3])
    with pytest.raises(EvaluationError, match=r"with 0\.5 ties"):
        per_case([2.25], "HR@5", ties=[0.5])


def test_coverage_counts_distinct_items() -> None:
    assert coverage_at_k([[1, 2], [2, 0], [4, 1]], 8) == 3 / 8
    assert coverage_at_k(torch.arange(1, 9).reshape(4, 2), 8) == 1.0
    with pytest.raises(EvaluationError, match=r"1\.\.3"):
        coverage_at_k([[4]], 3)


def test_popularity_bias_is_that_of_a_loop_over_places_and_items() -> None:
    rng = np.random.default_rng(3)
    counts = np.concatenate([[99], rng.integers(0, 4, 20), rng.integers(5, 40, 10)])
    lists = rng.integers(0, 31, (25, 4)) % rng.integers(1, 31, (25, 1))  # 0 is an empty place
    found = popularity_bias(lists, counts)
    listed = [item for row in lists.tolist() for item in row if item]
    assert 0 < len(listed) < 100

    often = [listed.count(item) for item in range(1, 31)]
    differences = sum(abs(a - b) for a in often for b in often)
    assert found["gini@4"] == pytest.approx(differences / (2 * 30 * sum(often)))

    def percentile(item: int) -> float:
        below = sum(counts[other] < counts[item] for other in range(1, 31))
        same = sum(counts[other] == counts[item] for other in range(1, 31))
        return float(below + same / 2) / 30

    expected = sum(map(percentile, listed)) / len(listed)
    assert found["popularity@4"] == pytest.approx(expected)
    assert found["cold@4"] == sum(counts[item] == 0 for item in listed) / len(listed)
    # head: the most popular, level by level, until they make up half of all training events
    head: set[int] = set()
    levels = sorted(set(counts[1:].tolist()), reverse=True)
    while sum(counts[item] for item in head) < counts[1:].sum() / 2:
        level = levels.pop(0)
        head |= {item for item in range(1, 31) if counts[item] == level}
    assert found["head@4"] == sum(item in head for item in listed) / len(listed)


def test_popularity_bias_at_its_ends() -> None:
    counts = np.array([0, 10, 3, 2, 0])
    every = popularity_bias([[1, 2], [3, 4]], counts)  # each item once
    assert (every["gini@2"], every["popularity@2"], every["cold@2"]) == (0.0, 0.5, 0.25)
    same = popularity_bias([[1], [1]], counts)
    assert same == {"gini@1": 0.75, "popularity@1": 0.875, "head@1": 1.0, "cold@1": 0.0}
    nothing = popularity_bias(np.zeros((3, 2)), counts)
    assert (
        set(nothing.values()) == {None} == set(popularity_bias(np.zeros((3, 0)), counts).values())
    )
    with pytest.raises(EvaluationError, match=r"span 5\.\.5; the catalogue has 1\.\.4"):
        popularity_bias([[5]], counts)
