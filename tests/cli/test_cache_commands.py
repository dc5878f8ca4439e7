"""``mmkd cache``: what it tells of a cache, and what it takes out of it."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embeddings.fakes import TEXTS, FakeText, card, catalogue, never, text_vector
from filelock import FileLock
from typer.testing import CliRunner

from mmkd import EmbeddingCache, EmbeddingTable, load_card
from mmkd.cli.app import app
from mmkd.errors import CacheError
from mmkd.files import read_json, write_sealed_json


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache", shard_size=16)


def call(cache: EmbeddingCache, *arguments: str, status: int = 0) -> Any:
    done = CliRunner().invoke(app, ["cache", *arguments, "--cache", str(cache.folder), "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


def fill(cache: EmbeddingCache, texts: list[str | None] = TEXTS) -> EmbeddingTable:
    return cache.table(card(), catalogue(texts), encoder_factory=FakeText)


def test_ls_lists_each_store(cache: EmbeddingCache) -> None:
    assert call(cache, "ls") == []
    fill(cache, [*TEXTS, None])
    fill(EmbeddingCache(cache.folder, dtype="float16"), TEXTS[:5])
    half, full = call(cache, "ls")
    assert (half["dtype"], half["vectors"], half["present"]) == ("float16", 5, 5)
    assert (full["dtype"], full["vectors"], full["items"], full["tables"]) == ("float32", 50, 51, 1)
    listed = CliRunner().invoke(app, ["ls", "cache", "--cache", str(cache.folder), "--json"])
    assert json.loads(listed.stdout) == [half, full]


def test_verify_reads_every_byte_even_of_what_was_checked(cache: EmbeddingCache) -> None:
    table = fill(cache)
    cache.neighbours(table, np.array([1]), 3)
    assert call(cache, "verify") == {"shards": 4, "damaged": [], "repaired": False}
    shard = next(cache.folder.glob("*/shards/000002.npy"))
    old = time.time() - 100
    os.utime(shard, (old, old))
    fill(cache)  # checks it and remembers its size and time
    data = bytearray(shard.read_bytes())
    data[-5] ^= 1
    shard.write_bytes(data)
    os.utime(shard, (old, old))  # as decay on a disk looks
    fill(cache)
    found = call(cache, "verify", status=1)
    assert [one["file"] for one in found["damaged"]] == [str(shard)]


@pytest.mark.parametrize("what", ["npy", "parquet", "orphan", "manifest", "index", "no vectors"])
def test_repair_removes_the_damaged_and_embed_mends(cache: EmbeddingCache, what: str) -> None:
    table = fill(cache)
    wanted = np.asarray(table.vectors)
    cache.neighbours(table, np.array([1]), 3)
    paths = {
        "npy": "shards/000002.npy",
        "no vectors": "shards/000002.npy",
        "parquet": "shards/000002.parquet",
        "orphan": "shards/000002.parquet",
        "manifest": "tables/*/manifest.parquet",
        "index": "tables/*/index.faiss",
    }
    path = next(cache.folder.glob(f"*/{paths[what]}"))
    if what in ("orphan", "no vectors"):
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[-5 if what in ("npy", "index") else 60] ^= 0x10  # in the first page
        path.write_bytes(data)
    found = call(cache, "verify", "--repair", status=1)
    assert len(found["damaged"]) == 1 and found["repaired"]
    assert call(cache, "verify")["damaged"] == []
    encoder = FakeText()
    mended = cache.table(card(), catalogue(TEXTS), encoder_factory=lambda: encoder)
    # a shard of 16, or of those whose records are lost
    assert len(encoder.seen) == (0 if what in ("manifest", "index") else 16)
    np.testing.assert_array_equal(mended.vectors, wanted)


def test_a_newer_store_is_an_error_not_damage(cache: EmbeddingCache) -> None:
    fill(cache)
    (meta,) = cache.folder.glob("*/meta.json")
    write_sealed_json(meta, read_json(meta) | {"format_version": 99})
    done = CliRunner().invoke(app, ["cache", "verify", "--cache", str(cache.folder)])
    assert "cache format 99" in str(done.exception)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe whose text encoder is `hashed-text`."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ndata: {root: ., items: {}, interactions: {}, split: leave_one_out}\n"
        "encoders: {text: hashed-text}\nstudent: {backbone: sasrec, score_with: id}\n"
        "task: next_item\nobjective: {recommendation: softmax}\n"
    )
    return path


def test_gc_frees_stores_of_cards_that_no_recipe_names(cache: EmbeddingCache, recipe: Path) -> None:
    fill(cache)
    cache.table(load_card("hashed-text"), catalogue(TEXTS))
    (found,) = call(cache, "gc", str(recipe))
    assert found["state"] == "would go" and found["why"] == "no recipe's encoder"
    assert len(call(cache, "ls")) == 2  # it only said so
    assert call(cache, "gc", str(recipe), "--older-than", "1") == []
    assert call(cache, "gc") == [found]  # recipes that are shipped name hashed-text too
    (found,) = call(cache, "gc", str(recipe), "--delete")
    assert found["state"] == "freed" and not Path(found["path"]).exists()
    assert [entry["card"] for entry in call(cache, "ls")] == ["hashed-text"]
    cache.table(load_card("hashed-text"), catalogue(TEXTS), encoder_factory=never)


def test_gc_leaves_a_store_alone_that_is_written_to(cache: EmbeddingCache, recipe: Path) -> None:
    fill(cache)
    store = cache.entries()[0].folder
    for name in ("writer.lock", "claims/0a.lock"):
        (store / name).parent.mkdir(exist_ok=True)
        with FileLock(store / name):
            (found,) = call(cache, "gc", str(recipe), "--delete")
            assert found["state"] == "in use: left"
    fill(cache)
    (found,) = call(cache, "gc", str(recipe), "--delete")
    assert found["state"] == "freed" and call(cache, "ls") == []


def test_gc_frees_old_tables_and_shards_that_none_has_vectors_of(
    cache: EmbeddingCache, recipe: Path
) -> None:
    recipe.write_text(recipe.read_text().replace("hashed-text", str(recipe.with_name("c.yaml"))))
    recipe.with_name("c.yaml").write_text("modality: text\nkind: embeddings.fakes:FakeText\n")
    first, _ = fill(cache, TEXTS[:32]), fill(cache, TEXTS[32:])
    store, name = first.key.split(".")
    manifest = cache.folder / store / "tables" / name / "manifest.parquet"
    old = time.time() - 5 * 86_400
    os.utime(manifest, (old, old))
    assert call(cache, "gc", str(recipe)) == []
    assert call(cache, "gc", str(recipe), "--older-than", "6") == []
    found = call(cache, "gc", str(recipe), "--older-than", "4", "--unreferenced", "--delete")
    assert sorted(Path(one["path"]).name for one in found) == ["000001.npy", "000002.npy", name]
    assert call(cache, "ls")[0]["vectors"] == 18
    kept = cache.table(card(), catalogue(TEXTS[32:]), encoder_factory=never)
    wanted = [text_vector(str(text)) for text in TEXTS[32:]]
    np.testing.assert_array_equal(kept.vectors[1:], wanted)


def test_gc_frees_what_was_fitted_to_catalogues_of_long_ago(
    cache: EmbeddingCache, recipe: Path
) -> None:
    first = cache.table(load_card("hashed-text"), catalogue(TEXTS[:32]))
    cache.table(load_card("hashed-text"), catalogue(TEXTS))
    store, name = first.key.split(".")
    old = time.time() - 5 * 86_400
    os.utime(cache.folder / store / "tables" / name / "manifest.parquet", (old, old))
    assert call(cache, "gc", str(recipe)) == []
    (found,) = call(cache, "gc", str(recipe), "--older-than", "4", "--delete")
    assert Path(found["path"]).name == store and "fitted to a catalogue" in found["why"]
    assert len(call(cache, "ls")) == 1


def test_gc_leaves_the_shards_of_a_run_that_was_not_completed(
    cache: EmbeddingCache, recipe: Path
) -> None:
    recipe.write_text(recipe.read_text().replace("hashed-text", str(recipe.with_name("c.yaml"))))
    recipe.with_name("c.yaml").write_text("modality: text\nkind: embeddings.fakes:FakeText\n")
    first = fill(cache, TEXTS[:32])
    second = fill(cache, TEXTS)
    tables = cache.folder / first.key.split(".")[0] / "tables"
    shutil.rmtree(tables / second.key.split(".")[1])  # as if killed before it was complete
    assert call(cache, "gc", str(recipe), "--unreferenced", "--delete") == []
    fill(cache, TEXTS[:32])  # used again, after those shards were written
    assert call(cache, "gc", str(recipe), "--unreferenced") != []


def test_a_folder_that_is_not_there_is_not_sound(tmp_path: Path) -> None:
    for command in ("verify", "gc"):
        done = CliRunner().invoke(app, ["cache", command, "--cache", str(tmp_path / "typo")])
        assert isinstance(done.exception, CacheError)  # `main` gives it status 2
        assert "typo: no such folder" in str(done.exception)


def test_verify_finds_and_mends_a_damaged_description(cache: EmbeddingCache) -> None:
    fill(cache)
    (meta,) = cache.folder.glob("*/meta.json")
    sound = meta.read_text()
    meta.write_text(sound[:10])
    for options in ([], ["--repair"]):
        done = CliRunner().invoke(
            app, ["cache", "verify", "--json", "--cache", str(cache.folder), *options]
        )
        assert done.exit_code == 1
        assert json.loads(done.stdout)["damaged"] == [{"file": str(meta), "fault": "damaged"}]
    fill(cache)
    assert meta.read_text() == sound


def test_a_recipe_that_cannot_be_read_stops_gc(cache: EmbeddingCache) -> None:
    fill(cache)
    done = CliRunner().invoke(
        app, ["cache", "gc", "no-such", "--delete", "--cache", str(cache.folder)]
    )
    assert done.exit_code != 0 and len(cache.entries()) == 1
