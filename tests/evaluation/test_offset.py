"""The place of untrained items: the best on the cases against a search by hand, and its price."""

import numpy as np
import pytest
import torch

from mmkd import Ensemble, Evaluator, FusedItemEmbedding, Recommender, SequenceSplit
from mmkd.data import Cases
from mmkd.evaluation import choose_offset
from mmkd.evaluation.offset import OFFSETS
from mmkd.student import build_backbone

ITEMS, WIDTH, USERS, TRAINED = 30, 8, 80, 20  # items 21 to 30 never train


def split(*, cold: bool = True) -> SequenceSplit:
    rng = np.random.default_rng(2)
    items = rng.integers(1, TRAINED + 1, (USERS, 5))
    items[:20, 0] = np.arange(1, TRAINED + 1)  # each of them trains
    if cold:
        items[::3, 3:] = rng.integers(TRAINED + 1, ITEMS + 1, (len(items[::3]), 2))
    users = np.arange(USERS)
    return SequenceSplit(
        items=items.ravel(),
        offsets=np.arange(USERS + 1) * 5,
        train_end=np.full(USERS, 3),
        valid=Cases(users, np.full(USERS, 3)),
        test=Cases(users, np.full(USERS, 4)),
        item_count=ITEMS,
    )


def ensemble(offset: float | None, members: int = 1, inference: str = "logits") -> Ensemble:
    torch.manual_seed(3)
    networks = [
        Recommender(
            embedding=FusedItemEmbedding(item_count=ITEMS, width=WIDTH, id_std=1.0),
            backbone=build_backbone("sasrec", width=WIDTH, max_length=4, layers=1),
        )
        for _ in range(members)
    ]
    student = Ensemble(networks, inference=inference, untrained_offset=offset)  # type: ignore[arg-type]
    if student.untrained is not None:
        student.untrained.copy_(torch.arange(1, ITEMS + 1) > TRAINED)
    return student


def value(offset: float, data: SequenceSplit, **options: object) -> float:
    evaluator = Evaluator()
    student = ensemble(offset, **options)  # type: ignore[arg-type]
    return evaluator.metrics(evaluator.ranks(student, data, data.valid))["NDCG@10"]


@pytest.mark.parametrize("inference", ["logits", "probabilities", "standardized"])
def test_the_best_offset_of_the_grid_is_found(inference: str) -> None:
    data = split()
    options = {"members": 2, "inference": inference}
    found, curve = choose_offset(
        ensemble(0.0, **options),  # type: ignore[arg-type]
        data,
        data.valid,
        evaluator=Evaluator(batch_size=7),
    )
    by_hand = [value(offset, data, **options) for offset in OFFSETS]
    assert [point["all"] for point in curve] == pytest.approx(by_hand)
    assert value(found, data, **options) == pytest.approx(max(by_hand))
    assert max(by_hand) > by_hand[OFFSETS.index(0.0)] + 0.01  # or the case shows nothing
    cold = 27 / USERS
    for point in curve:
        assert point["all"] == pytest.approx((1 - cold) * point["warm"] + cold * point["cold"])
    # the higher untrained items stand, the better are they found, and the worse the others
    assert curve[0]["cold"] == pytest.approx(0) and curve[-1]["cold"] > 0.3
    assert curve[0]["warm"] > curve[-1]["warm"]


def test_a_price_buys_cold_cases_and_no_more_than_it() -> None:
    data = split()
    free, curve = choose_offset(ensemble(0.0), data, data.valid)
    bought, _ = choose_offset(ensemble(0.0), data, data.valid, price=0.1)
    at = {point["offset"]: point for point in curve}
    assert at[bought]["cold"] >= at[free]["cold"]
    assert at[bought]["all"] >= 0.9 * at[free]["all"]
    dearer = [point for point in curve if point["cold"] > at[bought]["cold"]]
    assert all(point["all"] < 0.9 * at[free]["all"] for point in dearer)


def test_without_a_case_to_judge_by_nothing_moves() -> None:
    data = split(cold=False)
    assert choose_offset(ensemble(0.0), data, data.valid) == (0.0, [])


def test_an_offset_is_counted_in_standard_deviations_of_the_list() -> None:
    histories = torch.tensor([[1, 2, 3], [4, 5, 6]])
    plain = ensemble(None).next_scores(histories)
    moved = ensemble(-1.5).next_scores(histories)
    wanted = plain.clone()
    wanted[:, TRAINED + 1 :] -= 1.5 * plain[:, 1:].double().std(1, correction=0, keepdim=True)
    torch.testing.assert_close(moved, wanted)
    assert moved[0, 0] == -torch.inf
    assert "untrained" not in ensemble(None).state_dict()
    assert {"untrained", "untrained_offset"} <= ensemble(0.0).state_dict().keys()


def test_a_price_that_is_no_share_is_refused() -> None:
    data = split()
    with pytest.raises(ValueError, match="price: got 2"):
        choose_offset(ensemble(0.0), data, data.valid, price=2)
