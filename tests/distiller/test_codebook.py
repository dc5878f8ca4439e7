"""Correlation types: known clusters are found, codes match the formulas."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from references import correlation as reference
from torch.testing import assert_close

from mmkd.distiller import CorrelationCodebook, codebook, sample_pairs

CENTRES = np.array([[0.9, 0.9], [0.9, -0.9], [-0.9, 0.9], [0.0, 0.0]])


def clustered(each: int = 200, spread: float = 0.05) -> tuple[NDArray[np.float32], list[int]]:
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(len(CENTRES)), each)
    r = CENTRES[label] + rng.normal(scale=spread, size=(len(label), 2))
    return r.astype(np.float32), label.tolist()


def test_known_clusters_are_recovered() -> None:
    r, label = clustered()
    book = CorrelationCodebook(codes=4, assignment="hard").fit(r)
    gaps = np.linalg.norm(CENTRES[:, None] - book.centroids.numpy()[None], axis=2)
    assert gaps.min(axis=1).max() < 0.02
    codes = book.assign(torch.from_numpy(r)).numpy()
    assert {(int(c), k) for c, k in zip(codes, label, strict=True)} == {
        (int(gaps[k].argmin()), k) for k in range(4)
    }


def test_estimated_temperature_is_the_clusters_own_variance() -> None:
    r, _ = clustered(spread=0.05)
    temperature = CorrelationCodebook(codes=4).fit(r).temperature
    assert temperature == pytest.approx(2 * 0.05**2, rel=0.1)
    scaled = CorrelationCodebook(codes=4).fit(r * 3).temperature
    assert scaled == pytest.approx(9 * 2 * 0.05**2, rel=0.1)


def test_codes_match_the_formulas() -> None:
    rng = np.random.default_rng(1)
    r = rng.uniform(-1, 1, size=(300, 8)).astype(np.float32)
    soft = CorrelationCodebook(codes=10, temperature=0.3).fit(r)
    hard = CorrelationCodebook(codes=10, assignment="hard").fit(r)
    exact = r.astype(np.float64)
    c = soft.centroids.numpy().astype(np.float64)
    wanted = [reference.soft_code(row.tolist(), c, 0.3) for row in exact]
    assert_close(soft.assign(torch.from_numpy(r)), torch.tensor(wanted), rtol=1e-4, atol=1e-6)
    codes = hard.assign(torch.from_numpy(r))
    assert codes.dtype == torch.int64
    assert codes.tolist() == [reference.hard_code(row.tolist(), c) for row in exact]


def test_fewer_distinct_pairs_than_codes() -> None:
    r = np.repeat(CENTRES[:3].astype(np.float32), 5, axis=0)
    book = CorrelationCodebook(codes=6).fit(r)
    codes = book.assign(torch.from_numpy(r))
    assert codes.shape == (15, 6)
    assert_close(codes[:, 3:], torch.zeros(15, 3))
    assert_close(codes.max(dim=1).values, torch.ones(15))
    hard = CorrelationCodebook(codes=6, assignment="hard").fit(r)
    assert sorted(set(hard.assign(torch.from_numpy(r)).tolist())) == [0, 1, 2]


def test_fits_repeat() -> None:
    r, _ = clustered()
    first, second = (CorrelationCodebook(codes=9, seed=4).fit(r) for _ in range(2))
    assert torch.equal(first.centroids, second.centroids)


def test_sampled_pairs_are_half_uniform_half_close() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 16)).astype(np.float32)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    similarities = unit @ unit.T
    np.fill_diagonal(similarities, -2)
    threshold = np.sort(similarities, axis=1)[:, -33]  # each row's 33rd nearest
    first, second = sample_pairs(x, 6000, seed=1)
    assert len(first) == len(second) == 6000
    assert (first != second).all()
    near = similarities[first, second] > threshold[first]
    assert near[3000:].all()
    assert near[:3000].mean() == pytest.approx(32 / 399, abs=0.02)
    assert np.bincount(first[:3000], minlength=400).max() < 30
    again = sample_pairs(x, 6000, seed=1)
    np.testing.assert_array_equal(again, (first, second))


def test_small_catalogues_give_every_pair() -> None:
    x = np.eye(5, dtype=np.float32)
    first, second = sample_pairs(x, 1000)
    assert {(i, j) for i, j in zip(first[:10], second[:10], strict=True)} == {
        (i, j) for i in range(5) for j in range(i + 1, 5)
    }
    assert (first != second).all()


def test_errors_name_the_remedy() -> None:
    with pytest.raises(
        ValueError, match=r"temperature: got 0.0, wanted a number above 0; leave it unset"
    ):
        CorrelationCodebook(temperature=0.0)
    with pytest.raises(ValueError, match="no pair of items"):
        CorrelationCodebook().fit(np.zeros((0, 8), dtype=np.float32))
    with pytest.raises(ValueError, match="call fit first"):
        CorrelationCodebook(codes=2).assign(torch.zeros(1, 2))


def test_of_equally_near_neighbours_random_ones_are_drawn() -> None:
    x = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32)
    x[:200] = x[0]  # a placeholder
    first, second = sample_pairs(x, 4000)
    near = slice(2000, None)  # behind the uniform half
    partners = second[near][first[near] < 200]
    assert set(first[near] == second[near]) == {False}
    assert len(np.unique(partners)) > 150  # not the 33 that stand first


def test_among_many_rows_neighbours_are_searched_block_by_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
    wanted = sample_pairs(x, 6000, seed=1)
    monkeypatch.setattr(codebook, "EXACT_BELOW", 100)
    monkeypatch.setattr(codebook, "_ROWS_AT_ONCE", 20)  # fewer than neighbours are asked for
    found = sample_pairs(x, 6000, seed=1)
    np.testing.assert_array_equal(found[0], wanted[0])
    pairs, also = (set(zip(*each, strict=True)) for each in (found, wanted))
    assert pairs == also
