"""Encoders that fail: on one item, on everything, or in what they return."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embeddings.fakes import (
    TEXTS,
    FakeImage,
    FakeText,
    card,
    catalogue,
    never,
    text_vector,
)

from mmkd import EmbeddingCache
from mmkd.embeddings import RunReport
from mmkd.errors import CacheError


def spoiled(*names: str, raises: bool = False, value: float = np.nan) -> Any:
    def spoil(text: str) -> Any:
        if text not in names:
            return None
        if raises:
            raise RuntimeError(f"cannot encode {text!r}")
        return np.float32(value)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoiled("text number 3", "text number 40", raises=True), "RuntimeError: cannot encode"),
        (spoiled("text number 3", "text number 40"), "not finite"),
        (spoiled("text number 3", "text number 40", value=np.inf), "not finite"),
    ],
)
def test_a_bad_item_fails_alone_and_is_not_tried_again(
    cache: EmbeddingCache, spoil: Any, reason: str
) -> None:
    table = cache.table(card(), catalogue(TEXTS), encoder_factory=lambda: FakeText(spoil=spoil))
    assert np.flatnonzero(~table.present).tolist() == [0, 4, 41]
    for row, text in enumerate(TEXTS, 1):
        wanted = text_vector(str(text)) if row not in (4, 41) else np.zeros(6)
        np.testing.assert_array_equal(table.vectors[row], wanted)
    assert all(item.status == "failed" and reason in item.reason for item in cache.absent(table))
    cache.table(card(), catalogue(TEXTS), encoder_factory=never)


def test_a_reason_that_quotes_text_outside_utf8_is_recorded(cache: EmbeddingCache) -> None:
    def spoil(text: str) -> Any:
        if "\ud83d" in text:
            raise RuntimeError(f"no token for {text}")
        return None

    texts = ["whole", "half \ud83d"]
    table = cache.table(card(), catalogue(texts), encoder_factory=partial(FakeText, spoil=spoil))
    assert table.present.tolist() == [False, True, False]
    assert cache.absent(table)[0].reason.endswith("no token for half \\ud83d")


def test_failed_items_are_tried_again_on_request(cache: EmbeddingCache) -> None:
    spoil = spoiled("text number 3")
    first = cache.table(card(), catalogue(TEXTS), encoder_factory=lambda: FakeText(spoil=spoil))
    retrying = EmbeddingCache(cache.folder, retry_failed=True)
    encoder = FakeText()
    table = retrying.table(card(), catalogue(TEXTS), encoder_factory=lambda: encoder)
    assert encoder.seen == ["text number 3"]
    np.testing.assert_array_equal(table.vectors[4], text_vector("text number 3"))
    assert table.key != first.key
    assert cache.table(card(), catalogue(TEXTS), encoder_factory=never).present[1:].all()


def test_retrying_an_item_that_fails_again_ends(cache: EmbeddingCache) -> None:
    retrying = EmbeddingCache(cache.folder, retry_failed=True)
    spoil = spoiled("text number 0")
    for _ in range(2):
        table = retrying.table(
            card(), catalogue(TEXTS), encoder_factory=partial(FakeText, spoil=spoil)
        )
        assert np.flatnonzero(~table.present).tolist() == [0, 1]


def test_a_batch_that_is_too_large_is_halved(cache: EmbeddingCache) -> None:
    class Small(FakeText):
        def encode(self, inputs: Any, *, batch_size: int = 64) -> Any:
            if len(inputs) > 4:
                raise MemoryError("out of memory")
            return super().encode(inputs)

    assert cache.table(card(), catalogue(TEXTS), encoder_factory=Small).present[1:].all()


def test_one_new_item_at_fault_does_not_stop_a_later_run(cache: EmbeddingCache) -> None:
    cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText)
    spoil = spoiled("new", raises=True)
    table = cache.table(
        card(), catalogue([*TEXTS, "new"]), encoder_factory=lambda: FakeText(spoil=spoil)
    )
    assert np.flatnonzero(~table.present).tolist() == [0, 51]


@pytest.mark.parametrize("nan", [False, True])
def test_an_encoder_that_always_fails_is_an_error_and_nothing_is_recorded(
    cache: EmbeddingCache, nan: bool
) -> None:
    def spoil(text: str) -> Any:
        if nan:
            return np.float32(np.nan)
        raise RuntimeError("no kernel image")

    with pytest.raises(CacheError, match="not finite" if nan else "no kernel image"):
        cache.table(card(), catalogue(TEXTS), encoder_factory=lambda: FakeText(spoil=spoil))
    assert cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText).present[1:].all()


def first_chunk(folder: Path) -> list[str]:
    """The texts that a run with chunks of eight encodes first."""
    seen: list[str] = []
    EmbeddingCache(folder, shard_size=8).table(
        card(), catalogue(TEXTS), encoder_factory=lambda: FakeText(seen=seen)
    )
    return seen[:8]


def test_a_first_chunk_that_fails_whole_waits_for_the_others(tmp_path: Path) -> None:
    bad = first_chunk(tmp_path / "whole")
    cache = EmbeddingCache(tmp_path / "cache", shard_size=8)
    seen: list[str] = []
    spoil = spoiled(*bad, raises=True)
    reports: list[RunReport] = []
    table = cache.table(
        card(),
        catalogue(TEXTS),
        encoder_factory=lambda: FakeText(spoil=spoil, seen=seen),
        report=reports.append,
    )
    absent = cache.absent(table)
    assert {str(TEXTS[item.row - 1]) for item in absent} == {*bad}
    assert all("RuntimeError: cannot encode" in item.reason for item in absent)
    assert reports[0].encoded == 50
    cache.table(card(), catalogue(TEXTS), encoder_factory=never)


def test_what_failed_whole_is_settled_by_another_process_s_vectors(tmp_path: Path) -> None:
    """Another process encodes all but the first chunk while this one is at that."""
    bad = first_chunk(tmp_path / "whole")
    cache, others = tmp_path / "cache", [text for text in TEXTS if text not in bad]

    def spoil(text: str) -> Any:
        if text in bad:
            if not list(cache.rglob("*.npy")):
                EmbeddingCache(cache, shard_size=8).table(
                    card(), catalogue(others), encoder_factory=FakeText
                )
            raise RuntimeError("cannot encode it")
        return None

    mine: list[str] = []
    table = EmbeddingCache(cache, shard_size=8).table(
        card(), catalogue(TEXTS), encoder_factory=lambda: FakeText(spoil=spoil, seen=mine)
    )
    assert {str(TEXTS[row - 1]) for row in np.flatnonzero(~table.present)[1:]} == {*bad}
    assert {*mine} <= {"a short text"}  # the others' vectors were taken


def test_where_no_chunk_has_a_vector_all_are_told_together(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache", shard_size=8)
    spoil = spoiled(*map(str, TEXTS))
    with pytest.raises(CacheError, match="no vector for any of 50 items; the first reason: the en"):
        cache.table(card(), catalogue(TEXTS), encoder_factory=lambda: FakeText(spoil=spoil))
    assert not list(cache.folder.rglob("*.npy"))
    assert cache.table(card(), catalogue(TEXTS), encoder_factory=FakeText).present[1:].all()


def test_an_encoder_that_breaks_down_keeps_the_shards_before(cache: EmbeddingCache) -> None:
    class Breaking(FakeText):
        def encode(self, inputs: Any, *, batch_size: int = 64) -> Any:
            if len(self.seen) >= 32:
                raise RuntimeError("device lost")
            return super().encode(inputs)

    broken, encoder = Breaking(), FakeText()
    with pytest.raises(CacheError, match="device lost"):
        cache.table(card(), catalogue(TEXTS), encoder_factory=lambda: broken)
    cache.table(card(), catalogue(TEXTS), encoder_factory=lambda: encoder)
    assert len(broken.seen) == 32
    assert sorted(broken.seen + encoder.seen) == sorted(map(str, TEXTS))


def test_wrong_shapes_modality_and_width_are_errors(cache: EmbeddingCache) -> None:
    class Short(FakeText):
        def encode(self, inputs: Any, *, batch_size: int = 64) -> Any:
            return super().encode(inputs)[:-1]

    with pytest.raises(CacheError, match=r"gave shape \(15, 6\), wanted \(16, 6\)"):
        cache.table(card(), catalogue(TEXTS), encoder_factory=Short)
    with pytest.raises(CacheError, match="modality"):
        cache.table(card(), catalogue(TEXTS), encoder_factory=FakeImage)

    class Wide(FakeText):
        dim = 8

    cache.table(card(), catalogue(TEXTS[:9]), encoder_factory=FakeText)
    with pytest.raises(CacheError, match="width 8, its stored vectors have 6"):
        cache.table(card(), catalogue(TEXTS), encoder_factory=Wide)


def test_an_encoder_may_reuse_its_buffer_and_give_other_precisions(cache: EmbeddingCache) -> None:
    buffer = np.zeros((16, 6))

    class Reusing(FakeText):
        def encode(self, inputs: Any, *, batch_size: int = 64) -> Any:
            buffer[: len(inputs)] = super().encode(inputs)
            return buffer[: len(inputs)]

    table = cache.table(card(), catalogue(TEXTS), encoder_factory=Reusing)
    assert table.vectors.dtype == np.float32
    np.testing.assert_array_equal(table.vectors[1], text_vector("text number 0"))
