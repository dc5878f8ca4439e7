"""What correlation types add to a holistic similarity: which facets two items share.

On the made-up catalogue the truth is known: for each pair of items, which of a modality's facets
they have in common (the pattern, 8 of them). Mutual information is in nats. Its estimate from
finite counts is biased upwards, so it is judged against the same estimate on shuffled codes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import mutual_info_score

from mmkd import CorrelationDistiller, load_items, load_recipe
from mmkd.config.plan import plan
from mmkd.demo import make_synthetic
from mmkd.pipeline.embed import embed

Labels = NDArray[np.int64]

SEEDS = (0, 1)
SHOWN = {"image": ("colour", "shape", "pattern"), "text": ("material", "occasion", "pattern")}
BINS = 20  # of equal holistic value; finer ones, and it would tell all it knows itself
CODES = 16


@dataclass(frozen=True)
class Pairs:
    """Every pair of one modality, [P] each."""

    code: Labels
    holistic: NDArray[np.float32]
    pattern: Labels  # bit n: the n-th facet is shared

    def sharing_one(self) -> "Pairs":
        rows = np.isin(self.pattern, [1, 2, 4])
        return Pairs(self.code[rows], self.holistic[rows], self.pattern[rows])


@pytest.fixture(scope="module", params=SEEDS)
def pairs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Pairs]:
    """Both modalities' pairs, by the encoders and the distiller of the quickstart recipe."""
    folder = tmp_path_factory.mktemp("facets")
    made = make_synthetic(folder / "data", items=240, users=20, seed=request.param)
    planned = plan(
        load_recipe(
            "quickstart",
            [
                f"seed={request.param}",
                f"data.root={folder / 'data'}",
                f"cache.folder={folder / 'cache'}",
                f"distiller.codes={CODES}",
                "distiller.assignment=hard",
                "distiller.sampled_pairs=20000",
            ],
        )
    )
    items = load_items(root=folder / "data", **planned.items)
    assert planned.distiller is not None
    distiller = CorrelationDistiller(**planned.distiller).fit(embed(planned, items))
    found = {}
    for name, facets in SHOWN.items():
        rows = distiller.present[name].nonzero()[:, 0].numpy()
        first, second = (rows[side] for side in np.triu_indices(len(rows), k=1))
        targets = distiller.targets(torch.from_numpy(np.stack([first, second], axis=1)))[name]
        assert torch.equal(targets.sequence, torch.arange(len(first)))
        shared = [made.facets[f][first] == made.facets[f][second] for f in facets]
        pattern = sum(same.astype(np.int64) << n for n, same in enumerate(shared))
        assert isinstance(pattern, np.ndarray)
        found[name] = Pairs(targets.codes.numpy(), targets.holistic.numpy(), pattern)
    return found


def within(bins: Labels, code: Labels, pattern: Labels) -> float:
    """I(code; pattern | bin)."""
    parts = [(bins == b, float((bins == b).mean())) for b in np.unique(bins)]
    return sum(share * float(mutual_info_score(code[at], pattern[at])) for at, share in parts)


def shuffles(
    bins: Labels, code: Labels, measure: Callable[[Labels], float], times: int = 6
) -> list[float]:
    """The measure on codes that are shuffled inside each bin, and so tell nothing but the bin."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(times):
        mixed = code.copy()
        for b in np.unique(bins):
            at = np.flatnonzero(bins == b)
            mixed[at] = code[rng.permutation(at)]
        found.append(measure(mixed))
    return found


def quantile_bins(values: NDArray[np.float32], count: int) -> Labels:
    ranks: Labels = values.argsort(kind="stable").argsort(kind="stable")
    return ranks * count // len(values)


@pytest.mark.parametrize("name", SHOWN)
def test_a_pairs_type_tells_which_facets_it_shares(pairs: dict[str, Pairs], name: str) -> None:
    found = pairs[name]
    everywhere = np.zeros_like(found.code)
    told = mutual_info_score(found.code, found.pattern)
    chance = shuffles(
        everywhere, found.code, lambda code: float(mutual_info_score(code, found.pattern))
    )
    assert told > 8 * max(chance)


@pytest.mark.parametrize("only", ["any number", "one facet"])
@pytest.mark.parametrize("name", SHOWN)
def test_among_equally_similar_pairs_the_type_tells_and_the_similarity_does_not(
    pairs: dict[str, Pairs], name: str, only: str
) -> None:
    # with "one facet", which one: so that it is not just how many of them are shared
    found = pairs[name].sharing_one() if only == "one facet" else pairs[name]
    bins = quantile_bins(found.holistic, BINS)

    def excess(code: Labels) -> tuple[float, float]:
        """Information beyond that of shuffled codes, and how far these scatter."""
        chance = shuffles(bins, code, lambda mixed: within(bins, mixed, found.pattern))
        return within(bins, code, found.pattern) - float(np.mean(chance)), float(np.std(chance))

    by_type, spread = excess(found.code)
    # the holistic value itself, cut as finely inside each bin as there are codes
    by_value, _ = excess(quantile_bins(found.holistic, BINS * CODES))
    assert by_type > 5 * spread
    assert by_type > 4 * by_value
    assert by_type > (0.02 if only == "any number" else 0.005)
