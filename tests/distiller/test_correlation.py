"""Pair correlations against one-pair-at-a-time float64 loops."""

from typing import get_args

import pytest
import torch
from references import correlation as reference
from torch.testing import assert_close

from mmkd.distiller import (
    Similarity,
    dissected_correlation,
    dissected_matrix,
    holistic_correlation,
    holistic_matrix,
)

KINDS = get_args(Similarity)


def vectors(*shape: int) -> torch.Tensor:
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[..., 0, :3] = 0  # with three dimensions a facet: one facet without direction
    x[..., 1, :] = 0
    return x


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_match_the_naive_loop(kind: Similarity) -> None:
    x, y = vectors(5, 12), vectors(5, 12).flip(0)
    rows = list(zip(x.numpy(), y.numpy(), strict=True))
    whole = [reference.similarity(a, b, kind) for a, b in rows]
    facets = [reference.dissected(a, b, 4, kind) for a, b in rows]
    assert_close(holistic_correlation(x, y, kind), torch.tensor(whole, dtype=torch.float64))
    assert_close(dissected_correlation(x, y, 4, kind), torch.tensor(facets, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_hold_the_pairs(kind: Similarity) -> None:
    x = vectors(2, 4, 12)
    i, j = x[:, :, None, :].expand(2, 4, 4, 12), x[:, None, :, :].expand(2, 4, 4, 12)
    assert_close(holistic_matrix(x, kind), holistic_correlation(i, j, kind))
    assert_close(dissected_matrix(x, 4, kind), dissected_correlation(i, j, 4, kind))


def test_similarities_rise_with_likeness_and_stay_in_range() -> None:
    x = torch.tensor([[3.0, 4.0]])
    near, far = torch.tensor([[3.0, 4.5]]), torch.tensor([[-30.0, 2.0]])
    for kind in ("euclidean", "manhattan"):
        same, close, distant = (float(holistic_correlation(x, y, kind)) for y in (x, near, far))
        assert 0 < distant < close < same == 1
    assert float(holistic_correlation(x, near, "manhattan")) == pytest.approx(1 / 1.5)


def test_zero_vectors_are_unrelated_and_keep_gradients_finite() -> None:
    x = torch.zeros(2, 8, requires_grad=True)
    y = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    r = dissected_correlation(x, y, 4)
    assert_close(r, torch.zeros(2, 4))
    torch.autograd.backward(r.sum())
    assert x.grad is not None and x.grad.isfinite().all()


def test_no_pair_is_no_error() -> None:
    empty = torch.zeros(0, 8)
    assert dissected_correlation(empty, empty, 4).shape == (0, 4)


def test_near_duplicates_keep_their_small_distance() -> None:
    x = 10 + torch.arange(30, dtype=torch.float32)[None, :, None] * 1e-4
    distance = 1 / holistic_matrix(x.repeat(1, 1, 2), "euclidean")[0, 0, 1:] - 1
    exact = torch.arange(1, 30) * 1e-4 * 2**0.5
    assert_close(distance, exact, rtol=0.05, atol=2e-6)


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"dim 512 does not split into 7 facets; use .* such as 8"):
        dissected_correlation(torch.zeros(1, 512), torch.zeros(1, 512), 7)
    with pytest.raises(
        ValueError, match=r"got 'cosin', wanted one of cosine, dot, .*; did you mean .cosine"
    ):
        holistic_matrix(torch.zeros(1, 1, 2), "cosin")  # type: ignore[arg-type]
