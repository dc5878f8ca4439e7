"""Weights of an ensemble's members: the best on the cases, against a search by hand."""

import numpy as np
import pytest
import torch

from mmkd import Ensemble, Evaluator, FusedItemEmbedding, Recommender, SequenceSplit
from mmkd.data import Cases
from mmkd.errors import EvaluationError
from mmkd.evaluation import choose_weights
from mmkd.student import build_backbone

ITEMS, WIDTH, USERS = 30, 8, 60


def split() -> SequenceSplit:
    rng = np.random.default_rng(2)
    users = np.arange(USERS)
    return SequenceSplit(
        items=rng.integers(1, ITEMS + 1, USERS * 5),
        offsets=np.arange(USERS + 1) * 5,
        train_end=np.full(USERS, 3),
        valid=Cases(users, np.full(USERS, 3)),
        test=Cases(users, np.full(USERS, 4)),
        item_count=ITEMS,
    )


def ensemble(count: int, inference: str, weights: list[float] | None = None) -> Ensemble:
    torch.manual_seed(3)
    members = [
        Recommender(
            embedding=FusedItemEmbedding(item_count=ITEMS, width=WIDTH, id_std=10.0**n),
            backbone=build_backbone("sasrec", width=WIDTH, max_length=4, layers=1),
        )
        for n in range(count)
    ]
    return Ensemble(members, inference=inference, weights=weights)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inference", "metric"),
    [
        ("logits", "NDCG@10"),
        ("probabilities", "NDCG@10"),
        ("standardized", "NDCG@10"),
        ("standardized", "HR@5"),
    ],
)
def test_two_members_get_the_best_point_of_the_grid(inference: str, metric: str) -> None:
    data, evaluator = split(), Evaluator(batch_size=7)

    def value(share: float) -> float:
        student = ensemble(2, inference, [share, 1 - share])
        return evaluator.metrics(evaluator.ranks(student, data, data.valid))[metric]

    found = choose_weights(
        ensemble(2, inference), data, data.valid, evaluator=evaluator, metric=metric
    )
    best = max(value(step / 10) for step in range(11))
    assert value(found[0]) == pytest.approx(best)
    assert best > value(0.5)  # or the case shows nothing
    assert sum(found) == pytest.approx(1)


def test_the_search_ends_where_no_member_helps_alone() -> None:
    data, evaluator = split(), Evaluator()

    def value(shares: list[float]) -> float:
        student = ensemble(3, "standardized", shares)
        return evaluator.metrics(evaluator.ranks(student, data, data.valid))["NDCG@10"]

    found = choose_weights(ensemble(3, "standardized"), data, data.valid)
    at = value(found)
    assert at > value([1.0, 1.0, 1.0])
    for n in range(3):
        for step in range(11):
            others = sum(found) - found[n]
            scale = (1 - step / 10) / others if others else 0.0
            moved = [step / 10 if k == n else share * scale for k, share in enumerate(found)]
            if sum(moved):
                assert value(moved) <= at + 1e-6


def test_equal_members_stay_equal_and_no_case_is_refused() -> None:
    data, one = split(), ensemble(1, "standardized").networks[0]
    assert choose_weights(Ensemble([one, one, one]), data, data.valid) == [1 / 3] * 3
    assert choose_weights(Ensemble([one]), data, data.valid) == [1.0]
    nothing = Cases(np.empty(0, np.int64), np.empty(0, np.int64))
    with pytest.raises(EvaluationError, match="no validation case to choose them by"):
        choose_weights(Ensemble([one]), data, nothing)
