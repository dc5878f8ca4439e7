"""Tables that stay on disk: equal to arrays however they are indexed, and never read unasked."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embeddings.fakes import TEXTS, FakeText, card, catalogue, never, text_vector
from numpy.typing import NDArray

from mmkd import CorrelationDistiller, EmbeddingCache, EmbeddingTable
from mmkd.embeddings import table as module
from mmkd.embeddings.table import StoredVectors
from mmkd.errors import CacheError

# duplicates, absent items, several shards of 16
MIXED: list[str | None] = [*TEXTS[:30], None, *TEXTS[10:40], "  ", *TEXTS[::-1]]


def open_mixed(cache: EmbeddingCache) -> tuple[EmbeddingTable, NDArray[np.float32]]:
    rows = [np.zeros(6, np.float32)]
    rows += [text_vector(text) if text and text.strip() else rows[0] for text in MIXED]
    return cache.table(card(), catalogue(MIXED), encoder_factory=FakeText), np.stack(rows)


def age(cache: EmbeddingCache, *, seconds: float = 60) -> None:
    """Makes the shards old enough for their time of change to be trusted."""
    for path in cache.folder.glob("*/shards/*.npy"):
        stat = path.stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - int(seconds * 1e9)))


@pytest.mark.parametrize(
    "rows",
    [
        3,
        -1,
        np.int64(31),
        slice(None),
        slice(5, 90, 7),
        slice(None, None, -1),
        [4, 4, 0, 31, 111],
        [],
        np.array([-1, -112]),
        np.arange(113) % 3 == 1,
    ],
)
def test_indexing_gives_what_an_array_gives(cache: EmbeddingCache, rows: Any) -> None:
    table, wanted = open_mixed(cache)
    got = table.vectors[rows]
    expected = wanted[rows] if not isinstance(rows, list) else wanted[np.array(rows, np.int64)]
    assert isinstance(got, np.ndarray) and got.dtype == np.float32
    np.testing.assert_array_equal(got, expected)
    assert isinstance(table.vectors, StoredVectors) and table.vectors.shape == wanted.shape
    np.testing.assert_array_equal(np.asarray(table.vectors, np.float64), wanted)


@pytest.mark.parametrize("rows", [113, -114, [113], np.ones(5, bool), 1.5, [1.5], [[1]]])
def test_rows_out_of_range_and_other_indices_are_errors(cache: EmbeddingCache, rows: Any) -> None:
    table, _ = open_mixed(cache)
    with pytest.raises((IndexError, ValueError)):
        table.vectors[rows]


def test_chunks_hold_every_present_row_once(cache: EmbeddingCache) -> None:
    table, wanted = open_mixed(cache)
    for source in (table, EmbeddingTable(wanted, table.present, "c", "text", "k")):
        parts = list(source.chunks(7))
        rows = np.concatenate([rows for rows, _ in parts])
        assert sorted(rows.tolist()) == np.flatnonzero(table.present).tolist()
        assert max(len(part) for part, _ in parts) == 7
        np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), wanted[rows])


def test_few_maps_are_kept_open(cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAPS_KEPT", 2)
    table, wanted = open_mixed(cache)
    before = len(os.listdir("/proc/self/fd"))
    for row in range(len(wanted)):
        np.testing.assert_array_equal(table.vectors[row], wanted[row])
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_table_that_was_complete_before_reads_no_vector(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, wanted = open_mixed(cache)
    age(cache)
    cache.table(card(), catalogue(MIXED), encoder_factory=never)  # checks them and remembers it
    read: list[Path] = []
    monkeypatch.setattr("mmkd.embeddings.shards.file_checksum", read.append)
    monkeypatch.setattr(np, "load", None)
    again = EmbeddingCache(cache.folder).table(card(), catalogue(MIXED), encoder_factory=never)
    monkeypatch.undo()
    assert read == []
    assert (again.key, again.card_name, again.modality) == (table.key, "fake", "text")
    assert (len(again), again.dim) == (len(MIXED), 6)
    np.testing.assert_array_equal(again.present, table.present)
    np.testing.assert_array_equal(again.vectors, wanted)


def test_a_table_keeps_its_key_when_its_shards_are_made_again(cache: EmbeddingCache) -> None:
    table, wanted = open_mixed(cache)
    (shard,) = cache.folder.glob("*/shards/000002.npy")
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    healed = cache.table(card(), catalogue(MIXED), encoder_factory=FakeText)
    assert healed.key == table.key  # though its vectors lie elsewhere now
    np.testing.assert_array_equal(healed.vectors, wanted)
    (manifest,) = cache.folder.glob("*/tables/*/manifest.parquet")
    manifest.write_bytes(manifest.read_bytes()[:-20])
    with pytest.raises(CacheError, match=r"is not in .*; open it with table\(\)"):
        cache.absent(table)
    cache.table(card(), catalogue(MIXED), encoder_factory=never)
    assert [item.row for item in cache.absent(table)] == [31, 62]


def test_a_table_of_no_cache_has_no_reasons(cache: EmbeddingCache) -> None:
    table, wanted = open_mixed(cache)
    for key in ("no.such", "nokey", f"{table.key}0", "../x.y"):
        other = EmbeddingTable(wanted, table.present, "c", "text", key)
        with pytest.raises(CacheError, match=r"is not in .*; open it with table\(\)"):
            cache.absent(other)


def test_a_shard_that_goes_while_a_table_is_open_is_a_clear_error(cache: EmbeddingCache) -> None:
    table, _ = open_mixed(cache)
    shutil.rmtree(next(cache.folder.glob("*/shards")))
    with pytest.raises(CacheError, match="was removed or changed since the table was opened"):
        table.vectors[5]


def test_distilling_a_stored_table_is_distilling_its_array(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, wanted = open_mixed(cache)
    array = EmbeddingTable(wanted, table.present, "c", "text", "k")
    options: dict[str, Any] = {"dim": 6, "facets": 2, "codes": 4, "sampled_pairs": 500}
    in_memory = CorrelationDistiller(**options).fit({"text": array})
    monkeypatch.setattr("mmkd.distiller.reduction._CHUNK_ROWS", 7)
    read = StoredVectors.__getitem__

    def some(vectors: StoredVectors, rows: Any) -> NDArray[np.float32]:
        assert len(rows) <= 7  # it is never read whole
        return read(vectors, rows)

    monkeypatch.setattr(StoredVectors, "__array__", None)
    monkeypatch.setattr(StoredVectors, "__getitem__", some)
    stored = CorrelationDistiller(**options).fit({"text": table})
    np.testing.assert_allclose(stored.reduced["text"], in_memory.reduced["text"], atol=2e-6)
    np.testing.assert_array_equal(stored.present["text"], in_memory.present["text"])


def test_half_precision_has_a_store_of_its_own(cache: EmbeddingCache) -> None:
    full, wanted = open_mixed(cache)
    half_cache = EmbeddingCache(cache.folder, shard_size=16, dtype="float16")
    half = half_cache.table(card(), catalogue(MIXED), encoder_factory=FakeText)
    assert half.key != full.key and half.vectors.dtype == np.float32
    np.testing.assert_array_equal(half.vectors, wanted.astype(np.float16).astype(np.float32))
    (shard, *_) = cache.folder.glob("*-f16/shards/*.npy")
    assert np.load(shard).dtype == np.float16
    again = EmbeddingCache(cache.folder, dtype="float16")
    opened = again.table(card(), catalogue(MIXED), encoder_factory=never)
    np.testing.assert_array_equal(opened.vectors, half.vectors)
    assert {entry.dtype for entry in cache.entries()} == {"float16", "float32"}
    assert half_cache.neighbours(half, np.array([1]), 3)[0].shape == (1, 3)


def test_a_vector_beyond_half_precision_fails_alone(tmp_path: Path) -> None:
    def spoil(text: str) -> Any:
        return np.float32(7e4) if text == "text number 3" else None

    half = EmbeddingCache(tmp_path, dtype="float16")
    table = half.table(card(), catalogue(TEXTS), encoder_factory=lambda: FakeText(spoil=spoil))
    assert np.flatnonzero(~table.present).tolist() == [0, 4]
    assert "float16 ends at 65504; use cache.dtype: float32" in half.absent(table)[0].reason
