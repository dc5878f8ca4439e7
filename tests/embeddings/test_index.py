"""Neighbours by FAISS against a plain ranking in float64."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from embeddings.fakes import TEXTS, FakeText, card, catalogue
from numpy.typing import NDArray

from mmkd import EmbeddingCache, EmbeddingTable
from mmkd.embeddings import index as index_module
from mmkd.embeddings import index_kinds
from mmkd.embeddings.index import NeighbourIndex, index_of, unit
from mmkd.embeddings.index_kinds import empty_index, lists_of
from mmkd.errors import CacheError


def random_table(items: int = 300, dim: int = 16, *, seed: int = 0) -> EmbeddingTable:
    generator = np.random.default_rng(seed)
    present = generator.random(items + 1) > 0.2
    present[0] = False
    scale = generator.lognormal(size=(items + 1, 1))  # cosine must not care
    vectors = (generator.normal(size=(items + 1, dim)) * scale).astype(np.float32)
    vectors[~present] = 0
    return EmbeddingTable(vectors, present, "card", "text", "somewhere.else")


def naive(table: EmbeddingTable, row: int, k: int) -> tuple[list[int], list[float]]:
    scored = []
    query = table.vectors[row].astype(np.float64)
    for other in range(1, len(table.present)):
        if other == row or not table.present[other]:
            continue
        vector = table.vectors[other].astype(np.float64)
        cosine = query @ vector / (np.sqrt(query @ query) * np.sqrt(vector @ vector))
        scored.append((-cosine, other))
    scored.sort()
    return [other for _, other in scored[:k]], [-score for score, _ in scored[:k]]


def queries(table: EmbeddingTable) -> NDArray[np.int64]:
    return np.flatnonzero(table.present)[::-3].astype(np.int64)


def test_exact_neighbours_equal_a_naive_ranking(tmp_path: Path) -> None:
    table = random_table()
    rows, scores = EmbeddingCache(tmp_path).neighbours(table, queries(table), 10)
    assert rows.dtype == np.int64 and scores.dtype == np.float32
    for query, found, cosine in zip(queries(table), rows, scores, strict=True):
        wanted, wanted_cosine = naive(table, int(query), 10)
        assert found.tolist() == wanted
        np.testing.assert_allclose(cosine, wanted_cosine, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "HNSW32",
        pytest.param("IVF16,PQ8x8", marks=pytest.mark.slow),  # training it takes half a minute
        "OPQ8,IVF16,PQ8x4fs",
    ],
)
def test_approximate_search_finds_nearly_all(tmp_path: Path, kind: str | None) -> None:
    table = random_table(2000)
    cache = EmbeddingCache(tmp_path, exact_below=100, index=kind)
    rows, scores = cache.neighbours(table, queries(table), 10)
    exact, _ = EmbeddingCache(tmp_path).neighbours(table, queries(table), 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact, strict=True)])
    assert recall > 0.97
    assert (rows != queries(table)[:, None]).all() and table.present[rows].all()
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("kind", [None, "HNSW32"])
def test_a_search_that_ends_short_is_completed(tmp_path: Path, kind: str | None) -> None:
    """Many copies of one vector cut an HNSW graph into parts that a search cannot leave."""
    table = random_table(600)
    vectors = np.asarray(table.vectors)
    vectors[table.present] = 1.0
    vectors[np.flatnonzero(table.present)[-1]] = -1.0
    k = int(table.present.sum()) - 1
    rows, _ = EmbeddingCache(tmp_path, exact_below=2, index=kind).neighbours(
        table, queries(table)[:3], k
    )
    for query, found in zip(queries(table), rows, strict=False):
        assert sorted([int(query), *found.tolist()]) == np.flatnonzero(table.present).tolist()


def test_items_with_equal_vectors_are_neighbours_but_not_of_themselves(tmp_path: Path) -> None:
    table = random_table(60)
    same = np.flatnonzero(table.present)[:20]
    np.asarray(table.vectors)[same] = table.vectors[same[0]]
    rows, scores = EmbeddingCache(tmp_path).neighbours(table, same, 5)
    assert (rows != same[:, None]).all()
    assert np.isin(rows, same).all()
    assert all(len(set(found)) == 5 for found in rows.tolist())
    np.testing.assert_allclose(scores, 1.0, atol=1e-6)


def test_all_others_can_be_asked_for_but_not_more(tmp_path: Path) -> None:
    table = random_table(30)
    count = int(table.present.sum())
    cache = EmbeddingCache(tmp_path)
    rows, _ = cache.neighbours(table, queries(table), count - 1)
    for query, found in zip(queries(table), rows, strict=True):
        assert sorted([int(query), *found.tolist()]) == np.flatnonzero(table.present).tolist()
    for k in (0, count):
        with pytest.raises(CacheError, match=f"use 1 to {count - 1}"):
            cache.neighbours(table, queries(table), k)


def test_rows_without_a_vector_and_rows_that_are_no_items_are_errors(tmp_path: Path) -> None:
    table = random_table(30)
    missing = np.flatnonzero(~table.present)[1]
    cache = EmbeddingCache(tmp_path)
    with pytest.raises(CacheError, match=f"rows {missing} have no text vector"):
        cache.neighbours(table, np.array([queries(table)[0], missing]), 3)
    for row in (0, 31, -1):
        with pytest.raises(CacheError, match=r"rows are 1\.\.30"):
            cache.neighbours(table, np.array([row]), 3)
    wrong: Any = np.array([1.5])
    with pytest.raises(CacheError, match="integers"):
        cache.neighbours(table, wrong, 3)
    assert cache.neighbours(table, np.zeros(0, np.int64), 3)[0].shape == (0, 3)


def test_huge_tiny_and_zero_vectors(tmp_path: Path) -> None:
    table = random_table(40)
    rows = queries(table)
    before, _ = EmbeddingCache(tmp_path).neighbours(table, rows, 5)
    vectors = np.asarray(table.vectors)
    vectors[:20] *= np.float32(1e25)
    vectors[20:] *= np.float32(1e-25)
    after, scores = EmbeddingCache(tmp_path).neighbours(table, rows, 5)
    np.testing.assert_array_equal(before, after)
    vectors[rows[0]] = 0
    _, scores = EmbeddingCache(tmp_path).neighbours(table, rows[:1], 5)
    np.testing.assert_array_equal(scores, np.zeros((1, 5)))


def open_table(cache: EmbeddingCache, texts: list[str | None]) -> EmbeddingTable:
    return EmbeddingCache(cache.folder).table(card(), catalogue(texts), encoder_factory=FakeText)


def test_the_index_is_kept_beside_the_vectors_and_read_back(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TEXTS, None]
    rows = np.arange(1, 51)
    table = open_table(cache, texts)
    first = cache.neighbours(table, rows, 5)
    (saved,) = cache.folder.glob("*/tables/*/index.faiss")
    assert faiss.read_index(str(saved)).ntotal == 50
    monkeypatch.setattr(NeighbourIndex, "build", None)
    again = EmbeddingCache(cache.folder).neighbours(open_table(cache, texts), rows, 5)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_inverted_lists_stay_on_the_disk_and_find_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_kinds, "_POINTS_A_LIST", 1)
    texts = [f"item {n}" for n in range(300)]
    rows = np.arange(1, 301)

    def asked(texts: list[str], kind: str = "IVF7,SQ8") -> tuple[Any, Any]:
        cache = EmbeddingCache(tmp_path, index=kind)
        table = cache.table(card(), catalogue(texts), encoder_factory=FakeText)
        found = cache.neighbours(table, rows, 5)
        (folder,) = [saved.parent for saved in tmp_path.glob("*/tables/*/index.faiss")][-1:]
        index = index_of(table, folder, kind=kind)
        return found, index.index

    built, _ = asked(texts)
    (saved,) = tmp_path.glob("*/tables/*/index.faiss")
    mapped, index = asked(texts)
    lists = faiss.downcast_InvertedLists(index.invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists) and lists.read_only
    held: Any = faiss.read_index(str(saved))
    assert not isinstance(faiss.downcast_InvertedLists(held.invlists), faiss.OnDiskInvertedLists)
    queries = np.random.default_rng(0).standard_normal((20, held.d), dtype=np.float32)
    for ours, theirs in zip(index.search(queries, 9), held.search(queries, 9), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(built, mapped, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    # what is carried over holds its lists itself, whatever becomes of the file it came from
    monkeypatch.setattr(NeighbourIndex, "build", None)
    EmbeddingCache(tmp_path, index="IVF7,SQ8").table(
        card(), catalogue([*texts[1:], "another"]), encoder_factory=FakeText
    )
    carried, _ = asked([*texts[1:], "another"])
    (new,) = set(tmp_path.glob("*/tables/*/index.faiss")) - {saved}
    saved.unlink()
    assert faiss.read_index(str(new)).ntotal == 301
    again, _ = asked([*texts[1:], "another"])
    for ours, theirs in zip(carried, again, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("damage", ["flip", "truncate", "other vectors", "no description"])
def test_a_stale_or_damaged_index_is_built_again(cache: EmbeddingCache, damage: str) -> None:
    rows = np.arange(1, 51)
    table = open_table(cache, TEXTS)
    cache.neighbours(table, rows, 5)
    (saved,) = cache.folder.glob("*/tables/*/index.faiss")
    data = bytearray(saved.read_bytes())
    if damage == "flip":
        data[-3] ^= 0x40
        saved.write_bytes(data)
    elif damage == "truncate":
        saved.write_bytes(data[:-100])
    elif damage == "no description":
        saved.with_name("index.json").unlink()
    else:
        vectors = np.asarray(table.vectors)
        vectors[1:] = vectors[1:][::-1].copy()
        table = replace(table, vectors=vectors)
    found, _ = EmbeddingCache(cache.folder).neighbours(table, rows, 5)
    for row in rows:
        assert found[row - 1].tolist() == naive(table, int(row), 5)[0]


def test_the_index_of_a_changed_catalogue_is_its_own(cache: EmbeddingCache) -> None:
    cache.neighbours(open_table(cache, TEXTS), np.arange(1, 51), 5)
    table = open_table(cache, TEXTS[::-1])
    found, _ = cache.neighbours(table, np.arange(1, 51), 5)
    for row in range(1, 51):
        assert found[row - 1].tolist() == naive(table, row, 5)[0]


@pytest.mark.parametrize(
    ("kind", "lists"), [("Flat", 0), ("HNSW8", 0), ("IVF7,Flat", 7), ("PCA4,IVF9,SQ8", 9)]
)
def test_lists_of_an_index(kind: str, lists: int) -> None:
    assert lists_of(empty_index(kind, 8)) == lists


def test_lists_are_trained_on_vectors_in_proportion_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(index_kinds, "_TRAINING_ROWS", 10)
    taken: list[int] = []

    def counted(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        taken.append(len(vectors))
        return unit(vectors)

    monkeypatch.setattr(index_module, "unit", counted)
    table = random_table(2000)
    NeighbourIndex.build(table, kind="IVF8,Flat")
    NeighbourIndex.build(table, kind="SQ8")
    assert taken[0] == 8 * 64
    assert 10 in taken[1:]
