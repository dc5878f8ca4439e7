"""Dropout from random bytes behaves as dropout."""

import pytest
import torch
from torch.testing import assert_close

from mmkd.student.layers import dropout


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_drops_the_share_asked_for_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    out = dropout(torch.ones(400, 1000), rate, True)
    share = (out == 0).double().mean().item()
    assert abs(share - rate) < 0.005
    kept = out[out != 0]
    assert_close(kept, kept[:1].expand_as(kept))
    assert abs(out.double().mean().item() - 1) < 0.01


def test_entries_are_independent() -> None:
    """No two of the eight bytes of one draw, nor neighbouring draws, go together."""
    torch.manual_seed(1)
    out = (dropout(torch.ones(50_000, 16), 0.5, True) != 0).double()
    correlation = torch.corrcoef(out.T) - torch.eye(16)
    assert correlation.abs().max() < 0.025  # 5.6 standard errors
    assert (out.mean(0) - 0.5).abs().max() < 0.0125


def test_gradient_is_the_mask() -> None:
    x = torch.randn(7, 3, requires_grad=True)  # 21 entries, no multiple of 8
    out = dropout(x, 0.4, True)
    torch.autograd.backward(out.sum())
    assert x.grad is not None
    assert_close(out, x * x.grad)
    assert {round(v, 5) for v in x.grad.flatten().tolist()} <= {0.0, round(256 / (256 - 102), 5)}


def test_is_repeatable_and_acts_in_training_only() -> None:
    x = torch.randn(5, 9)
    torch.manual_seed(3)
    first = dropout(x, 0.3, True)
    second = dropout(x, 0.3, True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.3, True), first)
    assert not torch.equal(second, first)
    assert dropout(x, 0.3, False) is x
    assert dropout(x, 0.0, True) is x
    assert torch.all(dropout(x, 1.0, True) == 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_keeps_the_dtype(dtype: torch.dtype) -> None:
    assert dropout(torch.ones(4, 4, dtype=dtype), 0.2, True).dtype == dtype


def test_members_of_a_vmapped_ensemble_draw_their_own() -> None:
    out = torch.func.vmap(lambda x: dropout(x, 0.5, True), randomness="different")(
        torch.ones(2, 64)
    )
    assert not torch.equal(out[0], out[1])
    assert 0.2 < (out == 0).double().mean() < 0.8
