"""Indexes that follow a changing catalogue, and factory strings."""

from pathlib import Path

import numpy as np
import pytest
from embeddings.fakes import FakeText, card, catalogue, text_vector
from numpy.typing import NDArray

from mmkd import EmbeddingCache, EmbeddingTable
from mmkd.embeddings.index import NeighbourIndex
from mmkd.embeddings.index_kinds import default_kind
from mmkd.errors import CacheError

ALL: list[str | None] = [f"text number {n}" for n in range(400)]


def approximate(cache: EmbeddingCache, kind: str | None = None) -> EmbeddingCache:
    return EmbeddingCache(cache.folder, exact_below=50, index=kind)


def open_table(cache: EmbeddingCache, texts: list[str | None]) -> EmbeddingTable:
    return cache.table(card(), catalogue(texts), encoder_factory=FakeText)


def truth(texts: list[str | None], rows: NDArray[np.int64], k: int) -> list[set[float]]:
    """Cosines of each row's k nearest, in float64, without the cache."""
    vectors = np.stack([text_vector(str(text)).astype(np.float64) for text in texts])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = vectors[rows - 1] @ vectors.T
    cosine[np.arange(len(rows)), rows - 1] = -2
    return [set(np.sort(row)[::-1][:k].round(5)) for row in cosine]


def check(cache: EmbeddingCache, texts: list[str | None]) -> None:
    table = open_table(cache, texts)
    rows = np.arange(1, len(texts) + 1)
    found, cosines = cache.neighbours(table, rows, 5)
    assert (found != rows[:, None]).all() and (found >= 1).all() and (found <= len(texts)).all()
    hits = [
        len(wanted & set(got.astype(np.float64).round(5))) / len(wanted)
        for wanted, got in zip(truth(texts, rows, 5), cosines, strict=True)
    ]
    assert np.mean(hits) > 0.97


@pytest.mark.parametrize("kind", [None, "HNSW16", "IVF4,PQ3x4"])
@pytest.mark.parametrize(
    "later",
    [
        [*ALL, "new a", "new b"],
        ALL[20:],
        ["changed", *ALL[1:-1], "changed too"],
        [*ALL[::-1], ALL[3], ALL[3], "new"],
    ],
    ids=["grown", "shrunk", "changed", "reversed, with copies"],
)
def test_a_catalogue_that_changed_a_little_takes_the_index_over(
    cache: EmbeddingCache,
    later: list[str | None],
    kind: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check(approximate(cache, kind), ALL)
    monkeypatch.setattr(NeighbourIndex, "build", None)  # never again
    check(approximate(cache, kind), later)
    monkeypatch.setattr(NeighbourIndex, "add", None)  # it was saved
    check(approximate(cache, kind), later)
    check(approximate(cache, kind), ALL)  # and the first one is still there


def test_a_catalogue_that_changed_much_gets_its_own(cache: EmbeddingCache) -> None:
    check(approximate(cache), ALL)
    later = [*ALL[:200], *(f"other {n}" for n in range(200))]
    check(approximate(cache), later)
    sizes = {np.load(path).shape[1] for path in cache.folder.glob("*/tables/*/index.npy")}
    assert sizes == {400}


def test_vectors_that_were_encoded_again_are_indexed_again(cache: EmbeddingCache) -> None:
    check(approximate(cache), ALL)
    for shard in cache.folder.glob("*/shards/00000[12].npy"):
        shard.write_bytes(b"damaged")
    check(approximate(cache), ALL)
    for shard in cache.folder.glob("*/shards/*.npy"):
        shard.write_bytes(b"damaged")
    check(approximate(cache), ALL)


def test_a_batch_of_queries_is_answered_like_each_alone(cache: EmbeddingCache) -> None:
    table = open_table(cache, ALL)
    rows = np.arange(1, 401)[::-1]
    together, cosines = approximate(cache).neighbours(table, rows, 7)
    for place in (0, 130, 399):
        one, cosine = approximate(cache).neighbours(table, rows[place : place + 1], 7)
        np.testing.assert_array_equal(one[0], together[place])
        np.testing.assert_allclose(cosine[0], cosines[place], atol=1e-6)


def test_the_kind_grows_with_the_catalogue() -> None:
    assert default_kind(49_999) == "Flat"
    assert default_kind(100_000) == "IVF1024,SQ8"
    assert default_kind(1_100_000) == "IVF4096,SQ8"
    assert default_kind(60, exact_below=2) == "IVF1,SQ8"


@pytest.mark.parametrize(
    "kind", ["Flat", "IVF1024,PQ48x8", "HNSW32", "OPQ56,IVF64,PQ56x4fs", "SQ8"]
)
def test_factory_strings_are_accepted(tmp_path: Path, kind: str) -> None:
    EmbeddingCache(tmp_path, index=kind)


@pytest.mark.parametrize("kind", ["", "IVF", "PQ0", "nonsense", "IVF12,XY", "IDMap,Flat"])
def test_wrong_factory_strings_are_errors_before_any_work(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=f"^index: '{kind}'.* leave (it|IDMap) out"):
        EmbeddingCache(tmp_path, index=kind)


def test_a_factory_string_that_does_not_fit_the_vectors_is_an_error(cache: EmbeddingCache) -> None:
    table = open_table(cache, ALL)
    with pytest.raises(CacheError, match="'PQ4' is no FAISS index of width 6"):
        EmbeddingCache(cache.folder, index="PQ4").neighbours(table, np.array([1]), 3)
    with pytest.raises(CacheError, match=r"cannot be trained on 400 vectors.*fewer lists"):
        EmbeddingCache(cache.folder, index="IVF1000,Flat").neighbours(table, np.array([1]), 3)
