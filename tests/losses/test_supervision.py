"""What a recipe may ask of a recommendation objective, and what it is refused."""

from typing import Any

import pytest
import torch

from mmkd.losses.recommendation import GBCELoss, SampledSoftmaxLoss, SoftmaxLoss
from mmkd.losses.supervision import SUPERVISION

COUNTS = torch.arange(11)


@pytest.mark.parametrize("kind", SUPERVISION)
@pytest.mark.parametrize(
    ("options", "idle"),
    [
        ({"negatives": 5}, "negatives"),
        ({"loss": "softmax", "sampling": "uniform", "negatives": 5}, "negatives, sampling"),
        ({"loss": "sampled_softmax", "calibration": 0.5}, "calibration"),
    ],
)
def test_an_option_the_loss_does_not_have_is_refused(
    kind: str, options: dict[str, Any], idle: str
) -> None:
    loss = options.get("loss", "softmax")
    with pytest.raises(ValueError, match=f"^loss {loss} has no {idle}; remove it$"):
        SUPERVISION[kind](**options)


@pytest.mark.parametrize("kind", SUPERVISION)
def test_options_reach_the_loss(kind: str) -> None:
    assert isinstance(SUPERVISION[kind]().build_loss(COUNTS).loss, SoftmaxLoss)
    sampled = SUPERVISION[kind](loss="sampled_softmax", negatives=7, sampling="uniform")
    loss = sampled.build_loss(COUNTS).loss
    assert isinstance(loss, SampledSoftmaxLoss) and loss.negatives == 7
    assert loss.weights.tolist() == pytest.approx([0.1] * 10)
    gbce = SUPERVISION[kind](loss="gbce", negatives=3, calibration=1.0).build_loss(COUNTS).loss
    assert isinstance(gbce, GBCELoss) and gbce.beta == pytest.approx(3 / 9)


@pytest.mark.parametrize("option", ["mask_ratio", "last_only"])
@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_outside_0_to_1_is_refused(option: str, share: float) -> None:
    with pytest.raises(ValueError, match=f"{option}: got {share}, wanted a share from 0 to 1"):
        SUPERVISION["masked_item"](**{option: share})


def test_only_masked_item_is_for_bidirectional_networks() -> None:
    assert {kind: SUPERVISION[kind]().causal for kind in SUPERVISION} == {
        "next_item": True,
        "masked_item": False,
    }


@pytest.mark.parametrize("kind", SUPERVISION)
def test_items_that_never_train_can_be_left_out_of_the_candidates(kind: str) -> None:
    counts = torch.tensor([0, 3, 0, 1, 0, 2])  # items 2 and 4 never occur
    loss = SUPERVISION[kind](candidates="trained").build_loss(counts)
    hidden, matrix = torch.randn(1, 4, 3), torch.randn(5, 3, requires_grad=True)
    targets = torch.tensor([[5, 0, 1, 3]])

    value = loss(hidden, matrix, targets)

    logits = (hidden[0, [0, 2, 3]].double() @ matrix.double().mT)[:, [0, 2, 4]]  # items 1, 3, 5
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([2, 0, 1]))
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, matrix)
    assert (gradient[[1, 3]] == 0).all() and (gradient[[0, 2, 4]] != 0).any(1).all()


def test_sampled_losses_draw_from_the_candidates_alone() -> None:
    counts = torch.tensor([0, 3, 0, 1, 0, 2])
    sampled = SUPERVISION["next_item"](loss="sampled_softmax", candidates="trained")
    loss = sampled.build_loss(counts).loss
    assert isinstance(loss, SampledSoftmaxLoss)
    assert loss.weights.tolist() == pytest.approx([4 / 9, 2 / 9, 3 / 9])
