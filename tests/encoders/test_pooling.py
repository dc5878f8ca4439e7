"""Pooling against a loop over each text's own states, with junk on the padding."""

import pytest
import torch

from mmkd.encoders.tokens import POOLINGS, pool

LENGTHS = [5, 1, 3, 7]
WIDTH = 6


def reference(own: torch.Tensor, pooling: str) -> torch.Tensor:
    """One text's ``[l, d]`` states to ``[d]``, without any mask."""
    if pooling == "weighted_mean":
        total = sum((place + 1) * state for place, state in enumerate(own))
        return torch.as_tensor(total) / sum(range(1, len(own) + 1))
    if pooling == "mean":
        return torch.stack([own[:, feature].sum() / len(own) for feature in range(own.shape[1])])
    if pooling == "max":
        return torch.stack([max(own[:, feature]) for feature in range(own.shape[1])])
    return own[0] if pooling == "cls" else own[-1]


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_on_either_side_is_never_read(pooling: str, side: str, junk: float) -> None:
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(length, WIDTH, generator=generator) for length in LENGTHS]
    states = torch.full((len(texts), max(LENGTHS), WIDTH), junk)
    mask = torch.zeros(len(texts), max(LENGTHS), dtype=torch.int64)
    for row, own in enumerate(texts):
        place = slice(0, len(own)) if side == "right" else slice(max(LENGTHS) - len(own), None)
        states[row, place] = own
        mask[row, place] = 1
    expected = torch.stack([reference(own, pooling) for own in texts])
    torch.testing.assert_close(pool(states, mask, pooling), expected, rtol=1e-6, atol=1e-6)


def test_bfloat16_states_are_summed_in_float32() -> None:
    states = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    states[0, 0] = 1.0078125  # one step above 1: lost in any sum in bfloat16
    found = pool(states, torch.ones(1, 1000, dtype=torch.int64), "mean")
    torch.testing.assert_close(found, torch.tensor([[1 + 0.0078125 / 1000]]))


def test_unknown_pooling_lists_the_known() -> None:
    with pytest.raises(ValueError, match="use one of mean, weighted_mean"):
        pool(torch.zeros(1, 1, 1), torch.ones(1, 1), "average")
