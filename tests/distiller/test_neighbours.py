"""Teacher neighbours against naive loops in float64."""

from collections.abc import Iterable
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmkd import CorrelationDistiller, TeacherNeighbours


@pytest.fixture(scope="module")
def distiller() -> CorrelationDistiller:
    """Two modalities of 40 items; some lack one, item 7 lacks both."""
    rng = np.random.default_rng(3)
    tables = {}
    for name, missing in (("text", [7, 11]), ("image", [7, 12, 13])):
        present = np.arange(41) > 0
        present[missing] = False
        vectors = rng.normal(size=(41, 16)).astype(np.float32)
        tables[name] = SimpleNamespace(vectors=vectors, present=present)
    return CorrelationDistiller(dim=8, facets=4, codes=5, sampled_pairs=500).fit(tables)


def _cosine(distiller: CorrelationDistiller, name: str, i: int, j: int) -> float | None:
    if not (distiller.present[name][i] and distiller.present[name][j]):
        return None
    a, b = distiller.reduced[name][i].double(), distiller.reduced[name][j].double()
    return float(a @ b / (a.norm() * b.norm()))


def _naive(
    distiller: CorrelationDistiller,
    names: list[str],
    i: int,
    k: int,
    t: float,
    among: Iterable[int] = range(1, 41),
) -> dict[int, float]:
    scores = {}
    for j in among:
        found = [c for name in names if (c := _cosine(distiller, name, i, j)) is not None]
        if j != i and found:
            scores[j] = sum(found) / len(found)
    best = sorted(scores, key=lambda j: -scores[j])[:k]
    weight = {j: np.exp(scores[j] / t) for j in best}
    return {j: weight[j] / sum(weight.values()) for j in best}


@pytest.mark.parametrize("names", [["text"], ["text", "image"]])
def test_rows_and_shares_are_those_of_a_loop_over_all_pairs(
    distiller: CorrelationDistiller, names: list[str]
) -> None:
    found = TeacherNeighbours.fit(distiller, k=10, temperature=0.2, modalities=names)
    for i in range(1, 41):
        wanted = _naive(distiller, names, i, 10, 0.2)
        got = dict(zip(found.rows[i].tolist(), found.shares[i].tolist(), strict=True))
        got.pop(0, None)
        assert got == pytest.approx(wanted, abs=1e-5)
    assert not found.rows[0].any()
    assert not found.shares[7].any()


@pytest.mark.parametrize("among", [[2, 3, 5, 11, 13, *range(20, 36)], [4, 9, 12], [21], []])
def test_of_some_items_only_those_are_found(
    distiller: CorrelationDistiller, among: list[int]
) -> None:
    mask = np.isin(np.arange(41), among)
    found = TeacherNeighbours.fit(distiller, k=10, temperature=0.2, among=mask)
    for i in range(1, 41):
        wanted = _naive(distiller, ["text", "image"], i, 10, 0.2, among)
        got = dict(zip(found.rows[i].tolist(), found.shares[i].tolist(), strict=True))
        got.pop(0, None)
        assert got == pytest.approx(wanted, abs=1e-5)


def test_of_some_items_that_are_alike_random_ones_are_found() -> None:
    vectors = np.random.default_rng(1).normal(size=(401, 16)).astype(np.float32)
    vectors[1:301] = vectors[1]  # a placeholder's
    table = SimpleNamespace(vectors=vectors, present=np.arange(401) > 0)
    distiller = CorrelationDistiller(dim=8, facets=4, codes=5, sampled_pairs=500)
    odd = np.arange(401) % 2 == 1
    found = TeacherNeighbours.fit(distiller.fit({"image": table}), k=20, among=odd)
    assert (found.rows[1:] % 2 == 1).all()
    mass = found.spread((torch.arange(401) > 0).float())[1:301:2]
    assert mass.min() > 0.2
    assert mass.max() < 6


def test_types_that_follow_each_other_get_more(distiller: CorrelationDistiller) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(1, 41, 400), rng.integers(1, 41, 400)
    found = TeacherNeighbours.fit(
        distiller, k=6, temperature=0.2, modalities=["text"], taken_together=(first, second)
    )
    codebook, reduced = distiller.codebooks["text"], distiller.reduced["text"]
    here = distiller.present["text"]

    def types(i: int, j: int) -> torch.Tensor:
        a, b = reduced[i].view(4, 2).double(), reduced[j].view(4, 2).double()
        r = torch.nn.functional.cosine_similarity(a, b, dim=1).float()
        return codebook.assign(r[None])[0].double()

    other = second[np.random.default_rng(0).permutation(400)]
    share = []
    for pairs in (zip(first, second, strict=True), zip(first, other, strict=True)):
        total = torch.ones(5, dtype=torch.float64)
        for i, j in pairs:
            if i != j and here[i] and here[j]:
                total += types(int(i), int(j))
        share.append(total / total.sum())
    lift = share[0] / share[1]
    assert found.lift["text"].double() == pytest.approx(lift, rel=1e-4)

    logits = {
        j: _cosine(distiller, "text", 5, j) / 0.2 + float(types(5, j) @ lift.log())  # type: ignore[operator]
        for j in range(1, 41)
        if j != 5 and here[j]
    }
    best = sorted(logits, key=lambda j: -logits[j])[:6]
    total = sum(np.exp(logits[j]) for j in best)
    got = dict(zip(found.rows[5].tolist(), found.shares[5].tolist(), strict=True))
    assert got == pytest.approx({j: np.exp(logits[j]) / total for j in best}, abs=1e-4)


def test_draws_come_as_often_as_their_shares(distiller: CorrelationDistiller) -> None:
    found = TeacherNeighbours.fit(distiller, k=4, temperature=0.2)
    draws = torch.rand(200_000, generator=torch.Generator().manual_seed(0))
    got = torch.bincount(found.draw(torch.full((200_000,), 5), draws), minlength=41) / 200_000
    wanted = torch.zeros(41).index_add(0, found.rows[5], found.shares[5])
    assert torch.allclose(got, wanted, atol=0.005)
    assert found.draw(torch.tensor([[0, 7]]), torch.tensor([[0.5, 0.999]])).tolist() == [[0, 7]]


def test_spread_and_mean_are_sums_over_neighbours(distiller: CorrelationDistiller) -> None:
    found = TeacherNeighbours.fit(distiller, k=4, temperature=0.2)
    counts, matrix = torch.arange(41).float(), torch.randn(40, 3)
    spread, mean = torch.zeros(41), torch.zeros(41, 3)
    for i in range(1, 41):
        pairs = list(zip(found.rows[i].tolist(), found.shares[i].tolist(), strict=True))
        if not found.shares[i].any():
            pairs = [(i, 1.0)]
        for j, share in pairs:
            spread[j] += share * counts[i]
            mean[i] += share * matrix[j - 1]
    assert torch.allclose(found.spread(counts), spread, atol=1e-4)
    assert torch.allclose(found.mean(matrix), mean, atol=1e-5)


def test_a_tiny_catalogue_has_fewer_neighbours() -> None:
    vectors = np.eye(4, 3, -1, dtype=np.float32)
    table = SimpleNamespace(vectors=vectors, present=np.arange(4) > 0)
    distiller = CorrelationDistiller(dim=2, facets=2, codes=2, sampled_pairs=4).fit({"text": table})
    found = TeacherNeighbours.fit(distiller, k=20)
    assert found.rows.shape == (4, 2)
    assert sorted(found.rows[1].tolist()) == [2, 3]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"k": 0}, "k: got 0"),
        ({"temperature": 0.0}, "temperature: got 0"),
        ({"modalities": ["sound"]}, "got sound, wanted some of text, image"),
        ({"modalities": []}, "got none"),
    ],
)
def test_what_cannot_be_is_refused(
    distiller: CorrelationDistiller, options: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        TeacherNeighbours.fit(distiller, **options)  # type: ignore[arg-type]


def test_pairs_without_the_modality_are_refused(distiller: CorrelationDistiller) -> None:
    with pytest.raises(ValueError, match="taken together"):
        TeacherNeighbours.fit(distiller, taken_together=(np.array([7]), np.array([3])))


def test_items_that_lack_a_modality_are_found_too() -> None:
    """Ranking is by the mean over what both have, so the search must not ask for both."""
    rng = np.random.default_rng(1)
    tables = {}
    for name in ("text", "image"):
        present = np.arange(601) > 0
        present[301:] &= name == "text"
        vectors = rng.normal(size=(601, 16)).astype(np.float32)
        tables[name] = SimpleNamespace(vectors=vectors, present=present)
    distiller = CorrelationDistiller(dim=8, facets=4, codes=5, sampled_pairs=500).fit(tables)
    found = TeacherNeighbours.fit(distiller, k=5)
    cosine, shared = torch.zeros(601, 601), torch.zeros(601, 601)
    for name, has in distiller.present.items():
        unit = torch.nn.functional.normalize(distiller.reduced[name], dim=1)
        cosine += unit @ unit.mT
        shared += has[:, None] & has
    mean = (cosine / shared).nan_to_num(-9.0).fill_diagonal_(-9.0)
    mean[:, 0] = -9.0
    wanted = mean[1:301].topk(5).indices
    assert (wanted > 300).float().mean() > 0.3  # or the case shows nothing
    hits = [
        len(set(a) & set(b))
        for a, b in zip(found.rows[1:301].tolist(), wanted.tolist(), strict=True)
    ]
    assert np.mean(hits) / 5 > 0.95


def test_of_many_that_are_alike_none_is_everybodys_neighbour() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(401, 16)).astype(np.float32)
    vectors[1:301] = vectors[1]  # a placeholder's
    table = SimpleNamespace(vectors=vectors, present=np.arange(401) > 0)
    distiller = CorrelationDistiller(dim=8, facets=4, codes=5, sampled_pairs=500)
    found = TeacherNeighbours.fit(distiller.fit({"image": table}), k=20)
    mass = found.spread((torch.arange(401) > 0).float())[1:301]
    assert mass.min() > 0.1
    assert mass.max() < 3
