"""Datasets: a split of one's own; digests, equal for equal data, each telling of its own part."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmkd.data import Cases, Dataset, InteractionLog, ItemTable, SequenceSplit, leave_one_out, ratio
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
