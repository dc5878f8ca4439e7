"""Indexes whose inverted lists are made in pieces on the disk, beside those made in memory."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from embeddings.fakes import FakeText, card, catalogue
from numpy.typing import NDArray

from mmkd import EmbeddingCache
from mmkd.embeddings import inverted
from mmkd.embeddings.index import NeighbourIndex, index_damage
from mmkd.embeddings.inverted import fill_on_disk, read_mapped, too_large

VECTORS = np.random.default_rng(0).standard_normal((2000, 16), dtype=np.float32)
TEXTS: list[str | None] = [f"item {n}" for n in range(400)]
ROWS = np.arange(1, 401)


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted, "PIECE_BYTES", 2000)


def parts(start: int = 0) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    for at in range(start, len(VECTORS), 130):
        vectors = VECTORS[at : at + 130]
        yield np.arange(at, at + len(vectors)), vectors


@pytest.mark.parametrize("kind", ["IVF16,SQ8", "PCA8,IVF16,Flat", "IVF16,PQ8x4"])
def test_lists_in_pieces_are_those_of_an_index_in_memory(
    few_bytes: None, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    held: Any = faiss.index_factory(16, kind, faiss.METRIC_INNER_PRODUCT)
    held.train(VECTORS)
    made = faiss.clone_index(held)
    for _, vectors in parts():
        held.add(vectors)
    (tmp_path / "a").mkdir()
    fill_on_disk(made, parts(), tmp_path / "a" / "lists")
    faiss.write_index(made, str(tmp_path / "a" / "index"))
    del made
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == ["index", "lists"]
    (tmp_path / "a").rename(tmp_path / "b")
    read = read_mapped(tmp_path / "b" / "index", lists=tmp_path / "b" / "lists")
    both: list[Any] = [faiss.extract_index_ivf(index).invlists for index in (read, held)]
    ours, theirs = both
    for number in range(16):
        size = theirs.list_size(number)
        assert ours.list_size(number) == size
        for name in ("get_ids", "get_codes"):
            length = size if name == "get_ids" else size * theirs.code_size
            one, other = (getattr(lists, name)(number) for lists in (ours, theirs))
            np.testing.assert_array_equal(
                faiss.rev_swig_ptr(one, length), faiss.rev_swig_ptr(other, length)
            )
    assert capfd.readouterr().out == ""  # FAISS would speak in a command's answer


@pytest.mark.parametrize("kind", ["Flat", "HNSW8", "IVF4,PQ8x4fs"])
def test_kinds_that_have_no_plain_lists_are_made_in_memory(few_bytes: None, kind: str) -> None:
    index = faiss.index_factory(16, kind, faiss.METRIC_INNER_PRODUCT)
    assert not too_large(index, 10**9)


def test_lists_go_to_the_disk_by_their_size() -> None:
    index = faiss.index_factory(64, "IVF4,SQ8", faiss.METRIC_INNER_PRODUCT)
    fit = inverted.PIECE_BYTES // (64 + 8)
    assert not too_large(index, fit) and too_large(index, fit + 1)


def asked(
    folder: Path, texts: list[str | None], index: str = "IVF7,SQ8"
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    cache = EmbeddingCache(folder, index=index)
    table = cache.table(card(), catalogue(texts), encoder_factory=FakeText)
    return cache.neighbours(table, ROWS, 5)


def test_a_table_s_index_on_the_disk_answers_as_one_in_memory_and_is_carried_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[str | None] = ["new 1", *TEXTS[2:-1], "new 2", "new 3"]
    wanted = [asked(tmp_path / "memory", texts) for texts in (TEXTS, later)]
    assert not list(tmp_path.glob("**/index.ivfdata"))
    monkeypatch.setattr(inverted, "PIECE_BYTES", 2000)
    found = [asked(tmp_path / "disk", TEXTS)]
    monkeypatch.setattr(NeighbourIndex, "build", None)  # from now on nothing is built
    found += [asked(tmp_path / "disk", texts) for texts in (TEXTS, later, later)]
    for ours, theirs in zip(found, [wanted[0]] * 2 + [wanted[1]] * 2, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    saved = list(tmp_path.glob("disk/*/tables/*/index.ivfdata"))
    assert len(saved) == 2
    about = [json.loads(file.with_name("index.json").read_text()) for file in saved]
    assert [one["format"] for one in about] == [3, 3]  # which an earlier release leaves alone


def test_damaged_lists_are_found_and_made_again(few_bytes: None, tmp_path: Path) -> None:
    wanted = asked(tmp_path, TEXTS)
    (file,) = tmp_path.glob("*/tables/*/index.ivfdata")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert "index.ivfdata" in str(index_damage(file.parent))
    for ours, theirs in zip(asked(tmp_path, TEXTS), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert index_damage(file.parent) is None


def test_where_lists_cannot_be_written_the_index_is_made_in_memory(
    few_bytes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("mmkd.embeddings.index.fill_on_disk", full)
    found, _ = asked(tmp_path, TEXTS)
    assert found.shape == (400, 5) and not list(tmp_path.glob("*/tables/*/index.ivfdata"))


def test_a_disk_without_room_for_the_lists_is_told_before_they_are_mapped(
    few_bytes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(descriptor: int, offset: int, size: int) -> None:
        assert (offset, size) == (0, len(VECTORS) * (16 + 8))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    index: Any = faiss.index_factory(16, "IVF16,SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(VECTORS)
    with pytest.raises(OSError, match="No space left"):
        fill_on_disk(index, parts(), tmp_path / "lists")
    assert not [*tmp_path.iterdir()]


def test_lists_are_made_where_there_is_no_standard_output(
    few_bytes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index: Any = faiss.index_factory(16, "IVF16,SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(VECTORS)
    monkeypatch.setattr("sys.stdout", None)
    fill_on_disk(index, parts(), tmp_path / "lists")
    assert index.ntotal == len(VECTORS)


@pytest.mark.parametrize("after", ["fill_on_disk", "faiss.write_index"])
def test_lists_that_another_process_wrote_meanwhile_are_not_taken_for_this_one_s(
    few_bytes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    wanted = asked(tmp_path / "alone", TEXTS)
    place = f"mmkd.embeddings.index.{after}"
    first: Any = {"fill_on_disk": fill_on_disk, "faiss.write_index": faiss.write_index}[after]

    def then_another(*given: Any, **options: Any) -> Any:
        monkeypatch.setattr(place, first)
        found = first(*given, **options)
        asked(tmp_path / "both", TEXTS, index="IVF16,SQ8")
        return found

    monkeypatch.setattr(place, then_another)
    for _ in range(2):  # as it was made, and as it was saved
        for ours, theirs in zip(asked(tmp_path / "both", TEXTS), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    (file,) = tmp_path.glob("both/*/tables/*/index.json")
    assert index_damage(file.parent) is None
