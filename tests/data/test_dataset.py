"""Datasets: a split of one's own; digests, equal for equal data, each telling of its own part."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from mmkd import Dataset, InteractionLog, ItemTable, SequenceSplit
from mmkd.data import Cases, leave_one_out, ratio
from mmkd.errors import DataError

SPLIT = SequenceSplit(
    items=np.array([1, 2, 3, 2, 1, 3]),
    offsets=np.array([0, 3, 6]),
    train_end=np.array([1, 1]),
    valid=Cases(np.array([0, 1]), np.array([1, 1])),
    test=Cases(np.array([0, 1]), np.array([2, 2])),
    item_count=3,
)
ITEMS, USERS = ("", "a", "bc", "d"), ("u", "v")


def digests(
    items: tuple[str, ...] = ITEMS, users: tuple[str, ...] = USERS, split: SequenceSplit = SPLIT
) -> dict[str, str]:
    none = [None] * len(items)
    events = np.zeros(0, np.int64)
    return Dataset(
        items=ItemTable(items, items, none, none, [()] * len(items)),
        log=InteractionLog(events, events, events.astype(np.float64), user_ids=users),
        split=split,
    ).digests()


def differing(other: dict[str, str]) -> set[str]:
    return {name for name, digest in digests().items() if other[name] != digest}


def test_equal_data_has_equal_digests_however_it_lies_in_memory() -> None:
    strided = np.repeat(SPLIT.items, 2)[::2]
    assert not strided.flags["C_CONTIGUOUS"]
    narrow = replace(SPLIT, items=strided, offsets=SPLIT.offsets.astype(np.int32))
    assert differing(digests(split=narrow)) == set()


def test_each_digest_tells_of_its_own_part() -> None:
    assert differing(digests(items=("", "a", "d", "bc"))) == {"catalogue"}
    assert differing(digests(users=("v", "u"))) == {"users"}
    other_border = replace(SPLIT, offsets=np.array([0, 4, 6]))
    assert differing(digests(split=other_border)) == {"events"}
    assert differing(digests(split=replace(SPLIT, train_end=np.array([1, 2])))) == {"split"}
    swapped = replace(SPLIT, valid=SPLIT.test, test=SPLIT.valid)
    assert differing(digests(split=swapped)) == {"split"}


def test_a_moved_border_between_ids_or_arrays_shows() -> None:
    assert differing(digests(items=("", "ab", "c", "d"))) == {"catalogue"}
    shifted = replace(
        SPLIT, train_end=np.array([1, 1, 0]), valid=Cases(np.array([1]), np.array([1, 1]))
    )
    assert differing(digests(split=shifted)) == {"split"}


FILES = {
    "items.csv": "item_id\na\nb\nc\nd\n",
    "log.csv": "user_id,item_id,timestamp\nx,a,1\nx,b,2\nx,d,3\ny,c,1\ny,b,2\ny,a,3\ny,d,4\n",
}


def load(folder: Path, **split: Any) -> Dataset:
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return Dataset.load(
        folder, items={"path": "items.csv"}, interactions={"path": "log.csv"}, **split
    )


def test_a_dataset_is_read_and_split_by_name_by_options_or_by_a_function(tmp_path: Path) -> None:
    data = load(tmp_path)
    assert data.items.ids == ("", "a", "b", "c", "d")
    assert data.split.train_end.tolist() == [1, 2]
    long = load(tmp_path, split={"kind": "leave_one_out", "min_train_events": 2})
    assert long.split.train_end.tolist() == [3, 2]

    def own(log: InteractionLog, item_count: int) -> SequenceSplit:
        split = leave_one_out(log, item_count)
        return replace(split, valid=split.test)

    assert load(tmp_path, split=own).split.valid.position.tolist() == [2, 3]
    assert load(tmp_path, split=partial(ratio, valid=0.3, test=0.3)).split.item_count == 4


def test_an_unknown_split_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    for split in ("ratios", {"kind": "ratios"}):
        with pytest.raises(DataError, match=r"split: got kind 'ratios'.*did you mean 'ratio'"):
            Dataset.load(tmp_path, items={}, interactions={}, split=split)


SHOP = {"sku": ["a", "b", "c", "d"], "name": ["Pot", "Cup", "Tray", "Jug"]}
LOG = {
    "customer_id": list("xxxyyyy"),
    "sku": list("abdcbad"),
    "date": [f"2024-03-0{day}" for day in (1, 2, 3, 1, 2, 3, 4)],
}


def frames(kind: str) -> tuple[Any, Any]:
    if kind == "pandas":
        pandas = pytest.importorskip("pandas")
        shuffled_index = [7, 3, 5, 1]
        return pandas.DataFrame(SHOP, index=shuffled_index), pandas.DataFrame(LOG)
    if kind == "arrow":
        return pa.table(SHOP), pa.table(LOG).to_batches()[0]
    if kind == "lazy":
        return pl.LazyFrame(SHOP), pl.LazyFrame(LOG)
    return pl.DataFrame(SHOP), pl.DataFrame(LOG)


@pytest.mark.parametrize("kind", ["polars", "lazy", "pandas", "arrow"])
def test_frames_and_files_give_one_dataset(kind: str, tmp_path: Path) -> None:
    pl.DataFrame(SHOP).write_csv(tmp_path / "items.csv")
    pl.DataFrame(LOG).write_parquet(tmp_path / "log.parquet")
    from_files = Dataset.load(tmp_path, items="items.csv", events=Path("log.parquet"))
    named = Dataset.load(
        tmp_path,
        items={"path": "items.csv", "id": "sku", "title": "name", "text": "{name}"},
        interactions={
            "path": "log.parquet",
            "user": "customer_id",
            "item": "sku",
            "timestamp": "date",
        },
    )
    items, events = frames(kind)
    data = Dataset.load(items=items, events=events)
    assert data.items == from_files.items == named.items
    assert data.digests() == from_files.digests() == named.digests()
    assert data.log.timestamp.tolist() == from_files.log.timestamp.tolist()
    assert named.notes == () and len(data.notes) == len(from_files.notes) == 8
    assert from_files.options == {
        "items": {**named.options["items"]},
        "interactions": named.options["interactions"],
        "split": {"kind": "leave_one_out"},
    }
    # only what is read of a frame is kept
    assert {name: frame.columns for name, frame in data.frames.items()} == {
        "items": ["sku", "name"],
        "interactions": ["customer_id", "sku", "date"],
    }
    assert not from_files.frames and from_files.root == tmp_path


def test_filters_and_names_go_beside_a_frame() -> None:
    log = pl.DataFrame(
        {"u": list("xxxxy"), "i": list("abdca"), "at": [5, 4, 3, 2, 1], "stars": [5, 1, 4, 5, 3]}
    )
    data = Dataset.load(
        items=pl.DataFrame(SHOP),
        events=log,
        user="u",
        item="i",
        timestamp="at",
        rating="stars",
        min_rating=3,
        min_user_events=2,
        title=None,
    )
    assert [data.items.ids[row] for row in data.split.sequence(0)] == ["c", "d", "a"]
    assert data.items.titles[1] == "a"
    assert (data.left_out.events, data.left_out.rated_low, data.left_out.rare) == (5, 1, 1)
    assert data.left_out.users == 1
    told = "\n".join(data.notes)
    assert "1 of 5 events dropped: rated below min_rating" in told
    assert "1 user dropped" in told


def test_ties_are_told(tmp_path: Path) -> None:
    log = pl.DataFrame({"user_id": list("xxxyy"), "sku": list("abcaa"), "time": [1, 1, 2, 1, 3]})
    data = Dataset.load(items=pl.DataFrame(SHOP), events=log)
    assert data.log.tied() == 2
    assert "2 of 5 events (40%) tie in time" in data.notes[-1]
    untimed = Dataset.load(items=pl.DataFrame(SHOP), events=log, timestamp=None)
    assert "tie" not in untimed.notes[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"events": pl.DataFrame(LOG), "min_ratings": 3}, r"events: min_ratings: .*'min_rating'"),
        ({"events": {"user": "customer_id"}}, r"events: path: required"),
        ({"events": {"path": "x.csv", "usr": "x"}}, r"events: usr: unknown.*mean 'user'"),
        ({"events": 7}, r"events \(frame\): got int, wanted a path, or a polars, pandas"),
        ({"events": pl.DataFrame(LOG).clear()}, r"events \(frame\): the frame has no rows"),
        ({"events": pl.DataFrame(LOG), "interactions": {}}, "give the log once"),
        ({}, "give the log once"),
        ({"events": pl.DataFrame(LOG), "user": "customer"}, r"no column 'customer' \(user\)"),
        ({"events": pl.DataFrame(LOG), "text": "no braces"}, r"text: .*has no placeholder"),
    ],
)
def test_a_table_that_cannot_be_used(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Dataset.load(items=pl.DataFrame(SHOP), **arguments)
