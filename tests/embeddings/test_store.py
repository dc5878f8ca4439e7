"""Files of the cache: killed writers, two writers, damage, other versions, read-only folders."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from embeddings.fakes import TEXTS, FakeText, LoggingText, card, catalogue, never, text_vector

from mmkd import EmbeddingCache
from mmkd.embeddings.inputs import text_key
from mmkd.embeddings.upkeep import verify_cache
from mmkd.errors import CacheError
from mmkd.files import read_json, write_sealed_json

ROOT = Path(__file__).parents[2]


def run_interruptible(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "FAKE_LOG": str(log),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    }
    program = Path(__file__).with_name("interrupted_run.py")
    return subprocess.Popen([sys.executable, str(program), str(folder)], env=environment)


def committed(folder: Path) -> list[str]:
    """Keys in committed shards, read without the cache's code."""
    frames = [pl.read_parquet(path) for path in folder.glob("*/shards/*.parquet")]
    return [] if not frames else pl.concat(frames)["key"].to_list()


def test_a_killed_run_loses_at_most_a_shard_and_encodes_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log.txt"
    log.touch()
    process = run_interruptible(folder, log)
    deadline = time.monotonic() + 60
    while len(log.read_text().splitlines()) < 24 and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    encoded_before = log.read_text().splitlines()
    kept = len(committed(folder))
    assert 16 <= kept < 60
    assert len(encoded_before) - kept <= 8

    monkeypatch.setenv("FAKE_LOG", str(log))
    texts: list[str | None] = [f"text number {n}" for n in range(60)]
    resuming = EmbeddingCache(folder, shard_size=8)
    resumed = resuming.table(card(), catalogue(texts), encoder_factory=LoggingText)
    encoded = log.read_text().splitlines()
    twice = {text for text in encoded if encoded.count(text) > 1}
    assert twice <= set(encoded_before[kept:])  # only what no commit had saved
    assert set(encoded) == {f"text number {n}" for n in range(60)}
    keys = committed(folder)
    assert len(keys) == len(set(keys)) == 60

    clean = EmbeddingCache(tmp_path / "clean").table(card(), catalogue(texts))
    np.testing.assert_array_equal(resumed.vectors, clean.vectors)
    np.testing.assert_array_equal(resumed.present, clean.present)
    assert resumed.key == clean.key
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_two_processes_at_once_encode_each_item_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log = tmp_path / "cache", tmp_path / "log.txt"
    log.touch()
    process = run_interruptible(folder, log)
    while not log.read_text() and process.poll() is None:
        time.sleep(0.005)
    monkeypatch.setenv("FAKE_LOG", str(log))
    texts: list[str | None] = [f"text number {n}" for n in range(60)]
    joining = EmbeddingCache(folder, shard_size=8)
    joining.table(card(), catalogue(texts), encoder_factory=LoggingText)
    assert process.wait(60) == 0
    encoded = log.read_text().splitlines()
    assert len(encoded) == len(set(encoded)) == 60


def test_a_second_writer_waits_and_readers_do_not(cache: EmbeddingCache) -> None:
    cache.table(card(), catalogue(TEXTS[:20]), encoder_factory=FakeText)
    started, go_on = threading.Event(), threading.Event()

    class Blocking(FakeText):
        def encode(self, inputs: Any, *, batch_size: int = 64) -> Any:
            started.set()
            assert go_on.wait(30)
            return super().encode(inputs)

    def open_all(factory: Any) -> None:
        EmbeddingCache(cache.folder).table(card(), catalogue(TEXTS), encoder_factory=factory)

    first = threading.Thread(target=open_all, args=(Blocking,))
    first.start()
    assert started.wait(30)
    second = threading.Thread(target=open_all, args=(never,))  # finds all done once it may write
    second.start()
    table = cache.table(card(), catalogue(TEXTS[:20]), encoder_factory=never)
    assert table.present[1:].all()
    second.join(0.3)
    assert second.is_alive()
    go_on.set()
    first.join(30)
    second.join(30)
    assert not first.is_alive() and not second.is_alive()
    assert len(committed(cache.folder)) == 50


def shards(cache: EmbeddingCache) -> list[Path]:
    return sorted(cache.folder.glob("*/shards/*.npy"))


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_a_damaged_shard_is_encoded_again_and_the_others_kept(
    cache: EmbeddingCache, suffix: str, damage: str
) -> None:
    whole = np.asarray(cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText).vectors)
    assert len(shards(cache)) == 4
    victim = shards(cache)[1].with_suffix(suffix)
    lost = set(pl.read_parquet(victim.with_suffix(".parquet"))["key"])
    data = bytearray(victim.read_bytes())
    # in the vectors' data, or in the first page of the manifest
    data[-5 if suffix == ".npy" else 60] ^= 0x10
    if damage == "flip":
        victim.write_bytes(data)
    elif damage == "truncate":
        victim.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        victim.write_bytes(b"")
    else:
        victim.unlink()
    encoder = FakeText()
    table = cache.table(card(), catalogue(TEXTS), encoder_factory=lambda: encoder)
    assert len(encoder.seen) == 16
    assert {text_key(text) for text in encoder.seen} == lost
    np.testing.assert_array_equal(table.vectors, whole)
    cache.table(card(), catalogue(TEXTS), encoder_factory=never)


def test_vectors_without_a_manifest_and_temporary_files_are_cleared(cache: EmbeddingCache) -> None:
    cache.table(card(), catalogue(TEXTS[:16]), encoder_factory=FakeText)
    orphan = shards(cache)[0].with_name("000002.npy")
    orphan.write_bytes(b"half a sha")
    left = orphan.with_name(".000002.npy.1234-ab.tmp")
    left.write_bytes(b"half")
    table = cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    np.testing.assert_array_equal(table.vectors[50], text_vector("text number 49"))
    assert not left.exists()
    assert len(shards(cache)) == 4


def test_a_newer_format_is_refused(cache: EmbeddingCache) -> None:
    cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    (meta,) = cache.folder.glob("*/meta.json")
    write_sealed_json(meta, read_json(meta) | {"format_version": 2})
    with pytest.raises(CacheError, match=r"cache format 2.*up to 1.*upgrade"):
        cache.table(card(), catalogue(TEXTS), encoder_factory=never)


@pytest.mark.parametrize("name", ["meta.json", "tables/*/manifest.parquet"])
def test_a_flipped_bit_of_a_description_or_manifest_is_noticed_and_mended(
    cache: EmbeddingCache, name: str
) -> None:
    cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    (path,) = cache.folder.glob(f"*/{name}")
    draw = np.random.default_rng(0)
    for _ in range(10):
        sound = path.read_bytes()
        flipped = bytearray(sound)
        flipped[int(draw.integers(len(flipped)))] ^= 1 << int(draw.integers(8))
        path.write_bytes(flipped)
        assert [one.path for one in verify_cache(cache.folder)[1]] == [path]
        cache.table(card(), catalogue(TEXTS), encoder_factory=never)
        assert path.read_bytes() == sound and not verify_cache(cache.folder)[1]
    assert [entry.present for entry in cache.entries()] == [50]


@contextmanager
def unprivileged() -> Iterator[None]:
    """Acts as a user whom permissions bind, should the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_cache_serves_what_it_has(readable_folder: Path) -> None:
    cache = EmbeddingCache(readable_folder / "cache", shard_size=16)
    whole = cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    folders = [path for path in readable_folder.rglob("*") if path.is_dir()]
    for path in folders:
        path.chmod(0o555)
    try:
        with unprivileged():
            rows = np.arange(1, 51)
            table = cache.table(card(), catalogue(TEXTS), encoder_factory=never)
            np.testing.assert_array_equal(table.vectors, whole.vectors)
            fewer = cache.table(card(), catalogue(TEXTS[:40]), encoder_factory=never)
            np.testing.assert_array_equal(fewer.vectors, whole.vectors[:41])
            neighbours, _ = cache.neighbours(table, rows, 3)
            assert neighbours.shape == (50, 3)
            with pytest.raises(CacheError, match=r"MMKD_CACHE.*cannot be written"):
                cache.table(card(), catalogue([*TEXTS, "new"]), encoder_factory=FakeText)
            with pytest.raises(CacheError, match="cannot be written"):
                EmbeddingCache(readable_folder / "cache" / "other").table(card(), catalogue(TEXTS))
    finally:
        for path in folders:
            path.chmod(0o755)


def test_a_folder_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(CacheError):
        EmbeddingCache(tmp_path / "cache").table(card(), catalogue(TEXTS), encoder_factory=FakeText)


def test_options_out_of_range_are_refused_together(tmp_path: Path) -> None:
    wrong: Any = {"shard_size": 0, "dtype": "int8", "index": "nonsense"}
    problems = EmbeddingCache.check(**wrong)
    assert [line.partition(":")[0] for line in problems] == ["shard_size", "dtype", "index"]
    assert "int8" in problems[1] and "float32 or float16" in problems[1]
    with pytest.raises(ValueError, match=r"shard_size: got 0(.|\n)*dtype(.|\n)*index: 'nonsense'"):
        EmbeddingCache(tmp_path, **wrong)
    assert EmbeddingCache.check() == EmbeddingCache.check(folder="x", dtype="float16") == []


@pytest.mark.parametrize("at", ["vectors", "records", "manifest"])
def test_a_full_disk_is_a_clear_error_and_keeps_what_was_written(
    cache: EmbeddingCache, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    cache.table(card(), catalogue(TEXTS[:32]), encoder_factory=FakeText)
    writer = pq.ParquetWriter
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*arguments: Any, **options: Any) -> Any:
        if at == "vectors":
            arguments[0].write(b"half")
        elif ("manifest" in str(arguments[0])) != (at == "manifest"):
            return writer(*arguments, **options)
        else:
            Path(arguments[0]).write_bytes(b"half")
        raise full

    if at == "vectors":
        monkeypatch.setattr(np, "save", fail)
    else:
        monkeypatch.setattr(pq, "ParquetWriter", fail)
    if at == "manifest":  # of the catalogue: needed by nobody to read on
        table = cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
        np.testing.assert_array_equal(table.vectors[50], text_vector("text number 49"))
    else:
        with pytest.raises(CacheError, match=r"No space left on device.*free some space"):
            cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    monkeypatch.undo()
    assert len(committed(cache.folder)) == (50 if at == "manifest" else 32)
    encoder = FakeText()
    table = cache.table(card(), catalogue(TEXTS), encoder_factory=lambda: encoder)
    assert sorted(encoder.seen) == ([] if at == "manifest" else sorted(map(str, TEXTS[32:])))
    assert not [path for path in cache.folder.rglob("*") if path.name.endswith(".tmp")]
    np.testing.assert_array_equal(table.vectors[1], text_vector("text number 0"))


def test_a_store_of_an_earlier_version_is_read(cache: EmbeddingCache) -> None:
    """Without a precision in its description, shards in its manifests, or remembered checks."""
    whole = cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    (meta,) = cache.folder.glob("*/meta.json")
    meta.write_text('{"format_version": 1, "card": "fake", "modality": "text"}')
    (manifest,) = cache.folder.glob("*/tables/*/manifest.parquet")
    pl.read_parquet(manifest).write_parquet(manifest)
    again = cache.table(card(), catalogue(TEXTS), encoder_factory=never)
    assert again.key == whole.key and cache.entries()[0].dtype == "float32"
    np.testing.assert_array_equal(again.vectors, whole.vectors)
