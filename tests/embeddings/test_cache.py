"""What is encoded, what is kept, and which row gets which vector."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from embeddings.fakes import TEXTS, FakeFitted, FakeText, card, catalogue, never, text_vector
from PIL import Image

from mmkd import EmbeddingCache, EmbeddingTable, EncoderCard, ItemTable, load_card
from mmkd.embeddings import default_cache_folder
from mmkd.errors import CacheError


def build(
    cache: EmbeddingCache, texts: list[str | None], **options: Any
) -> tuple[EmbeddingTable, list[str]]:
    seen: list[str] = []
    table = cache.table(
        card(), catalogue(texts), encoder_factory=lambda: FakeText(seen=seen), **options
    )
    return table, seen


def expected(texts: list[str | None]) -> Any:
    rows = [np.zeros(6, np.float32)]
    for text in texts:
        rows.append(text_vector(text) if text and text.strip() else np.zeros(6, np.float32))
    return np.stack(rows)


def test_rows_hold_their_items_vectors_and_missing_rows_are_zero(cache: EmbeddingCache) -> None:
    texts = [*TEXTS[:20], None, "", " \t\n", *TEXTS[20:]]
    table, seen = build(cache, texts)
    np.testing.assert_array_equal(table.vectors, expected(texts))
    assert table.vectors.dtype == np.float32
    assert np.flatnonzero(~table.present).tolist() == [0, 21, 22, 23]
    assert (table.card_name, table.modality, table.dim, len(table)) == ("fake", "text", 6, 53)
    assert sorted(seen) == sorted(text for text in texts if text and text.strip())
    absent = cache.absent(table)
    assert [(item.row, item.item_id, item.status) for item in absent] == [
        (row, f"item-{row}", "missing") for row in (21, 22, 23)
    ]


def test_a_second_run_does_not_build_the_encoder(cache: EmbeddingCache) -> None:
    first, _ = build(cache, TEXTS)
    again = EmbeddingCache(cache.folder).table(card(), catalogue(TEXTS), encoder_factory=never)
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert again.key == first.key


def test_a_change_of_ten_items_encodes_ten(cache: EmbeddingCache) -> None:
    first, _ = build(cache, TEXTS)
    changed = [f"{text} anew" if n % 5 == 0 else text for n, text in enumerate(TEXTS)]
    table, seen = build(cache, changed)
    assert sorted(seen) == sorted(f"{TEXTS[n]} anew" for n in range(0, 50, 5))
    np.testing.assert_array_equal(table.vectors, expected(changed))
    assert table.key != first.key


def test_added_removed_reordered_and_repeated_items(cache: EmbeddingCache) -> None:
    build(cache, TEXTS)
    table, seen = build(cache, ["one more", *TEXTS[30:], *TEXTS[:10]])
    assert seen == ["one more"]
    np.testing.assert_array_equal(table.vectors, expected(["one more", *TEXTS[30:], *TEXTS[:10]]))
    backwards = TEXTS[::-1] + TEXTS[:3]  # removed items are still known, same text shares a vector
    table = cache.table(card(), catalogue(backwards), encoder_factory=never)
    np.testing.assert_array_equal(table.vectors, expected(backwards))


def test_the_same_content_is_encoded_once(cache: EmbeddingCache) -> None:
    table, seen = build(cache, ["same", "other", "same"])
    assert sorted(seen) == ["other", "same"]
    np.testing.assert_array_equal(table.vectors[1], table.vectors[3])


def test_another_card_has_its_own_vectors(cache: EmbeddingCache) -> None:
    build(cache, TEXTS)
    seen: list[str] = []
    other = card(dtype="float16")
    cache.table(other, catalogue(TEXTS), encoder_factory=lambda: FakeText(seen=seen))
    assert len(seen) == 50
    renamed = card(name="renamed")
    assert cache.table(renamed, catalogue(TEXTS), encoder_factory=never).card_name == "renamed"


def test_by_default_the_cards_own_encoder_is_built(cache: EmbeddingCache) -> None:
    table = cache.table(card(), catalogue(TEXTS))
    np.testing.assert_array_equal(table.vectors, expected(TEXTS))


def test_a_notebook_needs_a_card_and_a_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MMKD_CACHE", raising=False)
    items = catalogue(["a red teapot", None])
    table = EmbeddingCache("here").table(load_card("minilm-packaged"), items)
    assert (table.dim, table.present.tolist()) == (384, [False, True, False])
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert EmbeddingCache().folder == default_cache_folder() == Path("cache")
    monkeypatch.setenv("MMKD_CACHE", str(tmp_path / "here"))
    again = EmbeddingCache().table(load_card("minilm-packaged"), items, encoder_factory=never)
    assert again.key == table.key


def test_a_fitted_encoder_is_fitted_on_the_catalogue_whatever_its_order(
    cache: EmbeddingCache,
) -> None:
    fitted = card("FakeFitted")
    encoder = FakeFitted()
    table = cache.table(fitted, catalogue([*TEXTS, None]), encoder_factory=lambda: encoder)
    assert encoder.corpus is not None and sorted(encoder.corpus) == sorted(map(str, TEXTS))
    characters = sum(len(str(text)) for text in TEXTS)
    np.testing.assert_array_equal(table.vectors[1], text_vector("text number 0") + characters)
    cache.table(fitted, catalogue([None, *TEXTS[::-1]]), encoder_factory=never)


def test_any_change_of_the_corpus_refits_and_encodes_everything(cache: EmbeddingCache) -> None:
    fitted = card("FakeFitted")
    cache.table(fitted, catalogue(TEXTS), encoder_factory=FakeFitted)
    encoder = FakeFitted()
    cache.table(fitted, catalogue(TEXTS[:-1]), encoder_factory=lambda: encoder)
    assert len(encoder.seen) == 49
    cache.table(fitted, catalogue(TEXTS), encoder_factory=never)


def test_the_built_in_encoders_that_need_no_download(cache: EmbeddingCache, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (20, 10), (255, 0, 0)).save(path)
    words = "red green blue car house tree river stone cloud lamp".split()
    texts: list[str | None] = [f"{a} {b}" for a in words for b in words]
    text = EncoderCard(
        name="hashed", modality="text", kind="hashed_text", options={"components": 4}
    )
    image = EncoderCard(name="colour", modality="image", kind="color_image")
    items = catalogue(texts, images=[path, *[None] * 99])
    tables = [cache.table(each, items) for each in (text, image)]
    assert [int(table.present.sum()) for table in tables] == [100, 1]
    assert all(np.isfinite(table.vectors).all() for table in tables)
    again = cache.table(text, items, encoder_factory=never)
    np.testing.assert_array_equal(again.vectors, tables[0].vectors)
    backwards = catalogue(texts[::-1])
    reversed_ = cache.table(text, backwards, encoder_factory=never)
    np.testing.assert_array_equal(reversed_.vectors[1:], again.vectors[:0:-1])


def test_texts_that_utf8_cannot_hold_have_keys(cache: EmbeddingCache) -> None:
    texts: list[str | None] = ["half \ud83d", "half \ud83c", "zero \x00 byte", "päper 紙"]
    table, seen = build(cache, texts)
    assert len(seen) == 4
    np.testing.assert_array_equal(table.vectors, expected(texts))


def test_progress_counts_up_to_what_is_encoded(cache: EmbeddingCache) -> None:
    calls: list[tuple[int, int]] = []
    build(cache, TEXTS, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(16, 50), (32, 50), (48, 50), (50, 50)]


def test_entries_describe_the_last_opened_catalogue(cache: EmbeddingCache) -> None:
    assert cache.entries() == []
    build(cache, [*TEXTS, None])
    build(cache, ["other", None])
    cache.table(card(dtype="float16", name="half"), catalogue(TEXTS), encoder_factory=FakeText)
    latest, first = cache.entries()
    assert (latest.card_name, latest.items, latest.present) == ("half", 50, 50)
    assert (first.card_name, first.modality) == ("fake", "text")
    assert (first.items, first.present, first.vectors) == (2, 1, 51)
    files = [path for path in first.folder.rglob("*") if path.is_file()]
    assert first.size_bytes == sum(path.stat().st_size for path in files) > 51 * 6 * 4


def test_old_catalogues_manifests_do_not_pile_up(cache: EmbeddingCache) -> None:
    for size in range(1, 14):
        build(cache, TEXTS[:size])
    assert len(list(cache.entries()[0].folder.glob("tables/*"))) <= 8


def test_files_are_plain_npy_parquet_and_yaml(cache: EmbeddingCache) -> None:
    table, _ = build(cache, [*TEXTS[:20], None])
    folder = cache.entries()[0].folder
    shards = sorted(folder.glob("shards/*.npy"))
    vectors = np.concatenate([np.load(path, mmap_mode="r") for path in shards])
    records = pl.concat([pl.read_parquet(path) for path in folder.glob("shards/*.parquet")])
    (manifest,) = folder.glob("tables/*/manifest.parquet")
    frame = pl.read_parquet(manifest)
    assert {"item_id", "key", "status", "reason", "shard", "shard_row"} <= set(frame.columns)
    assert set(records["key"]) == set(frame["key"].drop_nulls())
    at = [(shard - 1) * 16 + row for shard, row in frame[:20].select("shard", "shard_row").rows()]
    np.testing.assert_array_equal(vectors[at], table.vectors[1:21])
    assert frame["status"].to_list() == ["ok"] * 20 + ["missing"]
    assert "kind: embeddings.fakes:FakeText" in (folder / "card.yaml").read_text()
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("texts", [[], [None], ["", "  "]])
def test_a_catalogue_without_any_input_is_an_error(
    cache: EmbeddingCache, texts: list[str | None]
) -> None:
    with pytest.raises(CacheError, match="none of"):
        cache.table(card(), catalogue(texts), encoder_factory=never)


def test_a_table_refuses_arrays_that_do_not_fit() -> None:
    vectors = np.zeros((3, 2), np.float32)
    with pytest.raises(CacheError, match="wanted"):
        EmbeddingTable(vectors, np.zeros(2, np.bool_), "c", "text", "k")
    with pytest.raises(CacheError, match="padding"):
        EmbeddingTable(vectors, np.ones(3, np.bool_), "c", "text", "k")


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MMKD_CACHE", raising=False)
    assert default_cache_folder() == Path("cache")
    monkeypatch.setenv("MMKD_CACHE", "/elsewhere")
    assert default_cache_folder() == Path("/elsewhere")


def test_item_ids_are_no_part_of_a_key(cache: EmbeddingCache) -> None:
    build(cache, TEXTS)
    items = catalogue(TEXTS)
    ids = tuple("" if not item_id else f"renamed {item_id}" for item_id in items.ids)
    renamed = ItemTable(ids, ids, items.text, items.image_path, items.attributes)
    table = cache.table(card(), renamed, encoder_factory=never)
    np.testing.assert_array_equal(table.vectors, expected(TEXTS))
