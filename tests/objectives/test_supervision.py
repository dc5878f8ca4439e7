"""What a recipe may ask of a recommendation objective, and what it is refused."""

from typing import Any

import pytest
import torch

from mmkd.objectives.recommendation import GBCELoss, SampledSoftmaxLoss, SoftmaxLoss
from mmkd.objectives.supervision import SUPERVISION

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
