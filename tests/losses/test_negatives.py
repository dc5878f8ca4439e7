"""Draws and their probabilities against a scan of the weights, one draw at a time."""

import math

import pytest
import torch
from torch import Tensor

from mmkd.losses.negatives import Candidates, NegativeSampler, Sampling

COUNTS = torch.tensor([99, 4, 0, 1, 0, 2, 7, 0])  # row 0 must not count; the last never trains


def weights(sampling: Sampling, candidates: Candidates) -> list[float]:
    """Of items 1..I."""
    counts = COUNTS[1:].tolist()
    return [
        0.0
        if candidates == "trained" and not count
        else 1.0
        if sampling == "uniform"
        else count + 1
        for count in counts
    ]


def scanned(weights: list[float], u: float) -> int:
    """The item in whose part of 0..1 the number falls."""
    point, total = u * math.fsum(weights), 0.0
    for item, weight in enumerate(weights, start=1):
        total += weight
        if point < total:
            return item
    raise AssertionError


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
@pytest.mark.parametrize("candidates", ["all", "trained"])
def test_draws_are_those_of_a_scan_and_so_are_their_probabilities(
    sampling: Sampling, candidates: Candidates
) -> None:
    sampler = NegativeSampler(train_counts=COUNTS, sampling=sampling, candidates=candidates)
    drawn = sampler.draw(5000, generator=torch.Generator().manual_seed(3))
    uniform = torch.rand(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    known = weights(sampling, candidates)
    assert drawn.tolist() == [scanned(known, u) for u in uniform.tolist()]
    log_q = sampler.log_q(torch.arange(1, 8).view(7, 1))[:, 0]
    total = math.fsum(known)
    wanted = [math.log(weight / total) if weight else -math.inf for weight in known]
    assert log_q.tolist() == pytest.approx(wanted, rel=1e-6)


def test_draws_without_a_generator_are_what_earlier_releases_drew() -> None:
    sampler = NegativeSampler(train_counts=COUNTS)
    torch.manual_seed(5)
    drawn = sampler.draw(2000)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    shares = (COUNTS[1:] + 1).float()
    earlier = torch.multinomial(shares / shares.sum(), 2000, replacement=True) + 1
    assert torch.equal(drawn, earlier) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_the_largest_number_draws_the_last_candidate(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    def largest(count: int, **options: object) -> Tensor:
        return torch.full((count,), 1 - 2.0**-53, dtype=torch.float64)

    monkeypatch.setattr(torch, "rand", largest)
    found = [
        NegativeSampler(train_counts=COUNTS, sampling=sampling, candidates=candidates).draw(1)
        for candidates in ("all", "trained")
    ]
    assert [int(items) for items in found] == [7, 6]


def test_more_items_than_a_float_counts_are_drawn_exactly() -> None:
    """`torch.multinomial` ends at 2^24, and sums of float32 stand still there."""
    items = 2**24 + 5
    counts = torch.zeros(items + 1, dtype=torch.int64)
    counts[[3, items - 1]] = torch.tensor([1, 2])
    sampler = NegativeSampler(train_counts=counts, candidates="trained")
    drawn = sampler.draw(300, generator=torch.Generator().manual_seed(0))
    assert sorted({*drawn.tolist()}) == [3, items - 1]
    assert float((drawn == 3).float().mean()) == pytest.approx(0.4, abs=0.1)
    popular = NegativeSampler(train_counts=counts)  # all weigh 1 but for these
    log_q = popular.log_q(torch.tensor([3, items - 1, items]))
    assert log_q.tolist() == pytest.approx([math.log(n / (items + 3)) for n in (2, 3, 1)])
    uniform = NegativeSampler(train_counts=counts, sampling="uniform")
    largest = uniform.draw(20_000, generator=torch.Generator().manual_seed(1)).max()
    assert 0.999 * items < int(largest) <= items


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sampling: got 'popular', wanted one of uniform, pop"):
        NegativeSampler(train_counts=COUNTS, sampling="popular")  # type: ignore[arg-type]
