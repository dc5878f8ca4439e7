"""A run asks at each chunk what others committed; that must not cost the folder's length."""

from pathlib import Path

import numpy as np
import pytest

from mmkd.embeddings.shards import ShardStore


def put(folder: Path, number: int, *endings: str) -> None:
    for ending in endings:
        (folder / "shards" / f"{number:06d}.{ending}").touch()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shards").mkdir()
    return tmp_path


def listings(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    told: list[int] = []
    numbers = store.numbers

    def counted() -> list[int]:
        told.append(1)
        return numbers()

    monkeypatch.setattr(store, "numbers", counted)
    return told


def test_what_others_commit_is_found_once_and_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set(range(1, 1001))
    for number in seen:
        put(folder, number, "parquet")
    store, rng, top = ShardStore(folder), np.random.default_rng(0), 1000
    listed = listings(store, monkeypatch)
    for _ in range(400):
        new = set()
        for _ in range(rng.integers(3)):
            top += 1
            put(folder, top, "npy", "parquet")
            new.add(top)
        if rng.random() < 0.5 and new:  # one's own are seen without asking
            seen.add(new.pop())
        assert set(store.unseen(seen)) == new
        seen |= new
    assert len(listed) <= 4


def test_a_shard_without_records_is_not_taken_and_hides_none(folder: Path) -> None:
    seen = set(range(1, 101))
    for number in seen:
        put(folder, number, "parquet")
    store = ShardStore(folder)
    put(folder, 101, "npy")  # being written, or left by a killed writer
    put(folder, 102, "npy", "parquet")
    assert store.unseen(seen) == [102]
    put(folder, 101, "parquet")
    assert store.unseen(seen | {102}) == [101]


def test_a_gap_hides_shards_for_a_bounded_number_of_calls(folder: Path) -> None:
    seen = set(range(1, 101))
    store = ShardStore(folder)
    put(folder, 102, "parquet")  # 101 was removed as damaged
    found = [store.unseen(seen) for _ in range(13)]
    assert found[-1] == [102]


def test_a_small_folder_is_listed_each_time(folder: Path) -> None:
    store = ShardStore(folder)
    assert store.unseen(set()) == []
    put(folder, 5, "parquet")
    assert store.unseen(set()) == [5]
