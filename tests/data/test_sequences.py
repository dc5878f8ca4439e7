"""Logs by columns and sequence files: the same log, splits and digests as from the log itself."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mmkd import (
    Dataset,
    InteractionLog,
    ItemTable,
    NextItem,
    SequenceSplit,
    load_interactions,
    load_items,
)
from mmkd.column_files import ArrowMap, write_parquet_parts
from mmkd.data import ids, interactions, leave_one_out
from mmkd.data.batches import BatchStream
from mmkd.data.dataset import GivenTable
from mmkd.data.ids import CodedIds
from mmkd.data.inspection import inspect_data
from mmkd.data.readers import check_load_items, read_table
from mmkd.data.tasks import Batch
from mmkd.errors import DataError

SPLITS: list[dict[str, Any]] = [
    {"kind": "leave_one_out"},
    {"kind": "cold_items", "share": 0.3},
    {"kind": "ratio"},
    {"kind": "temporal"},
    {"kind": "temporal", "valid": 0.2, "new_items": "drop"},
]


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """40 items and 3,000 events of 50 users, in no order, times tied."""
    draw = np.random.default_rng(0)
    pl.DataFrame({"item_id": [f"i{n}" for n in range(40)]}).write_csv(tmp_path / "items.csv")
    events = pl.DataFrame(
        {
            "user_id": [f"ü{n}" for n in draw.integers(0, 50, 3000)],
            "item_id": [f"i{n}" for n in draw.integers(0, 38, 3000)],
            "rating": draw.integers(1, 6, 3000),
            "timestamp": draw.integers(0, 400, 3000),
        }
    )
    events.write_csv(tmp_path / "log.csv")
    pq.write_table(events.to_arrow(), tmp_path / "log.parquet", row_group_size=700)
    return tmp_path


def loaded(shop: Path, path: str, split: Any = "leave_one_out", **options: Any) -> Dataset:
    log = {"path": path, **options}
    return Dataset.load(shop, items={"path": "items.csv"}, interactions=log, split=split)


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"rating": "rating", "min_rating": 3}, {"timestamp": None}]
)
def test_a_sequence_file_gives_the_splits_of_its_log(
    shop: Path, split: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interactions, "_BLOCK", 500)  # several blocks
    before = loaded(shop, "log.csv", split, **options)
    before.save_sequences(shop / "log.sequences")
    after = loaded(shop, "log.sequences", split)
    assert after.digests() == before.digests()
    for user in range(before.split.user_count):
        mine, theirs = (data.log.user == user for data in (before, after))
        order = np.argsort(before.log.timestamp[mine], kind="stable")
        np.testing.assert_array_equal(
            before.log.timestamp[mine][order], after.log.timestamp[theirs]
        )
    assert after.left_out == before.left_out
    assert [n.partition(": ")[2] for n in after.notes] == [
        n.partition(": ")[2] for n in before.notes
    ]
    assert after.options["interactions"]["rating"] == options.get("rating")


def test_batches_of_a_sequence_file_are_those_of_its_log_and_are_not_copied(shop: Path) -> None:
    def batches(split: SequenceSplit, rank: int, processes: int) -> list[Batch]:
        options: dict[str, Any] = {"max_length": 9, "batch_size": 16, "seed": 3}
        stream = BatchStream(split, NextItem(), rank=rank, world_size=processes, **options)
        if split is after.split:
            held = stream.windows._items
            assert held.data_ptr() == after.log.item.ctypes.data  # the file's own pages
        return [*stream.epoch(0), *stream.epoch(1)]

    before = loaded(shop, "log.csv")
    before.save_sequences(shop / "log.sequences")
    after = loaded(shop, "log.sequences")
    assert after.split.items is after.log.item
    alone = batches(before.split, 0, 1)
    for whole, *parts in zip(
        alone, *(batches(after.split, rank, 2) for rank in range(2)), strict=True
    ):
        for rank, part in enumerate(parts):
            assert torch.equal(whole.items[rank::2], part.items)
            assert torch.equal(whole.targets[:, rank::2], part.targets)
    content = (shop / "log.sequences").read_bytes()
    after.log.item[0] = 7  # stays with this process
    assert (shop / "log.sequences").read_bytes() == content


@pytest.mark.parametrize("group", [7, 50])
def test_a_sequence_file_that_an_earlier_version_wrote_as_parquet_is_read(
    shop: Path, group: int
) -> None:
    before = loaded(shop, "log.csv", rating="rating", min_rating=3)
    before.save_sequences(shop / "new.sequences")
    kept = ArrowMap(shop / "new.sequences").kept
    log = before.log
    events = pl.DataFrame({"user": log.user, "items": log.item, "timestamps": log.timestamp})
    by_user = events.sort("user", "timestamps", maintain_order=True).group_by(
        "user", maintain_order=True
    )
    frame = by_user.agg("items", "timestamps").with_columns(
        pl.Series("user", log.user_ids, dtype=pl.String)
    )
    write_parquet_parts(shop / "old.sequences", frame.iter_slices(group), kept)
    old, new = (loaded(shop, f"{name}.sequences") for name in ("old", "new"))
    assert old.digests() == new.digests() == before.digests()
    assert old.options == {**new.options, "interactions": old.options["interactions"]}
    np.testing.assert_array_equal(old.log.item, new.log.item)
    np.testing.assert_array_equal(old.log.timestamp, new.log.timestamp)
    assert old.log.user_ids == new.log.user_ids
    content = bytearray((shop / "old.sequences").read_bytes())
    content[len(content) // 2] ^= 1
    (shop / "old.sequences").write_bytes(content)
    with pytest.raises(DataError, match="not a readable sequence file"):
        loaded(shop, "old.sequences")


def test_a_sequence_file_may_be_given_its_own_options_and_no_others(shop: Path) -> None:
    loaded(shop, "log.csv", rating="rating", min_rating=3).save_sequences(shop / "l.sequences")
    again = loaded(shop, "l.sequences", rating="rating", min_rating=3)
    assert again.options["interactions"]["min_rating"] == 3
    assert len(again.log) == len(loaded(shop, "l.sequences").log)
    with pytest.raises(DataError, match=r"min_rating: got 4, but the file was written with 3"):
        loaded(shop, "l.sequences", rating="rating", min_rating=4)
    with pytest.raises(DataError, match=r"min_rating: got None, but the file was written with 3"):
        loaded(shop, "l.sequences", min_rating=None)  # the default, but said
    items = load_items(path="items.csv", root=shop)
    log = load_interactions(items, path="l.sequences", root=shop, min_rating=3, rating="rating")
    np.testing.assert_array_equal(log.item, again.log.item)
    with pytest.raises(DataError, match="user: got 'who'"):
        load_interactions(items, path="l.sequences", root=shop, user="who")


def test_a_sequence_file_is_refused_where_it_does_not_fit(shop: Path) -> None:
    loaded(shop, "log.csv").save_sequences(shop / "log.sequences")
    content = (shop / "log.sequences").read_bytes()
    for place in (len(content) // 2, content.index(b"timestamp_format") + 20, len(content) - 3):
        altered = bytearray(content)
        altered[place] ^= 1
        (shop / "log.sequences").write_bytes(altered)
        with pytest.raises(DataError, match="its checksum differs"):
            loaded(shop, "log.sequences")
    for place in (2, 6, 20, 100):  # where the schema is
        (shop / "log.sequences").write_bytes(content[:place] + b"\x7e" + content[place + 1 :])
        with pytest.raises(DataError, match="not a readable sequence file"):
            loaded(shop, "log.sequences")
    (shop / "log.sequences").write_bytes(content[:-9])
    with pytest.raises(DataError, match="its checksum differs"):
        loaded(shop, "log.sequences")
    (shop / "log.sequences").write_bytes(content)
    with pytest.raises(DataError, match="can only be a log"):
        read_table("log.sequences", root=shop)
    with pytest.raises(DataError, match="can only be a log"):
        load_items(path="log.sequences", root=shop)
    assert "is no catalogue" in check_load_items(path="log.sequences")[0]
    with pytest.raises(DataError, match="no such file"):
        loaded(shop, "other.sequences")
    pl.read_csv(shop / "items.csv").reverse().write_csv(shop / "items.csv")
    with pytest.raises(DataError, match="another catalogue"):
        loaded(shop, "log.sequences")
    pl.DataFrame({"user": ["a"]}).write_parquet(shop / "any.sequences")
    with pytest.raises(DataError, match=r"sequence file \(is another table\); write it again"):
        loaded(shop, "any.sequences")
    pl.DataFrame({"user": ["a"]}).write_ipc_stream(shop / "any.sequences")
    with pytest.raises(DataError, match=r"sequence file \(has no checksum\); write it again"):
        loaded(shop, "any.sequences")
    frame = pl.read_csv(shop / "log.csv")
    data = Dataset.load(shop, items={"path": "items.csv"}, events=frame)
    with pytest.raises(DataError, match="a frame"):
        data.save_sequences(shop / "frame.sequences")


@pytest.mark.parametrize("kind", ["text", "dictionary", "categorical", "numbers"])
def test_a_log_of_parquet_is_that_of_csv(shop: Path, kind: str) -> None:
    frame = pl.read_csv(shop / "log.csv")
    if kind == "numbers":  # of users; a catalogue's ids are text
        frame = frame.with_columns(pl.col("user_id").str.slice(1).cast(pl.Int32))
        frame.write_csv(shop / "log.csv")
    table = frame.to_arrow()
    if kind == "dictionary":  # one that also holds what no row has, and not in their order
        known = pa.array(["nobody", *sorted(frame["user_id"].unique())])
        codes = pa.array([known.to_pylist().index(one) for one in frame["user_id"]], pa.int16())
        column = pa.DictionaryArray.from_arrays(codes, known)
        table = table.set_column(0, "user_id", column)
    if kind == "categorical":
        table = frame.with_columns(pl.col("user_id").cast(pl.Categorical)).to_arrow()
    pq.write_table(table, shop / "log.parquet", row_group_size=700)
    before, after = loaded(shop, "log.csv"), loaded(shop, "log.parquet")
    assert before.log.user_ids == after.log.user_ids
    for name in ("user", "item", "timestamp"):
        np.testing.assert_array_equal(getattr(before.log, name), getattr(after.log, name))


@pytest.mark.parametrize("block", [100, 1 << 26])
@pytest.mark.parametrize("name", ["l.csv", "l.csv.gz", "l.jsonl", "l.jsonl.gz", "l.inter"])
def test_a_log_of_text_in_many_parts_is_that_of_its_rows(
    shop: Path, name: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.data.readers.delimited._BYTES", block)
    monkeypatch.setattr("mmkd.data.readers.json_lines._LINES", block)
    monkeypatch.setattr("mmkd.column_files._GROUP_ROWS", 2 * block)
    frame = pl.read_csv(shop / "log.csv").with_columns(review=pl.lit("long " * 9))
    types = {
        name: "float" if name in ("rating", "timestamp") else "token" for name in frame.columns
    }
    named = frame.rename({name: f"{name}:{kind}" for name, kind in types.items()})
    text = {
        "csv": frame.write_csv(),
        "jsonl": "\n".join(map(json.dumps, frame.rows(named=True))),
        "inter": named.write_csv(separator="\t"),
    }[name.split(".")[1]]
    (shop / name).write_bytes(gzip.compress(text.encode()) if "gz" in name else text.encode())
    data = loaded(shop, name, rating="rating", min_rating=2)
    users: dict[str, int] = {}
    rows = []
    for user, item, rating, timestamp in frame.drop("review").rows():
        number = users.setdefault(user, len(users))
        if rating >= 2:
            rows.append((number, 1 + int(item[1:]), timestamp))
    assert data.log.user_ids == (*users,)
    for found, wanted in zip(
        (data.log.user, data.log.item, data.log.timestamp), zip(*rows, strict=True), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    told = GivenTable.of("events", {"path": name}, load_interactions, {}).table(shop)
    assert told.parquet is not None and "review" not in told.parquet.header.columns
    guessed = Dataset.load(shop, items=str(shop / "items.csv"), events=str(shop / name))
    assert guessed.digests()["users"] == data.digests()["users"]


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (["3", " 2 ", "9007199254740991", "-5"], [3.0, 2.0, 2**53 - 1, -5.0]),
        (["3", "2", "1.5", "-5"], [3.0, 2.0, 1.5, -5.0]),  # the last part is no whole number
        (
            ["1970-01-02", "1970-01-03", "1970-01-01T00:00:01", "1970-01-02"],
            [86400, 172800, 1, 86400],
        ),
        (["3", "2", "7", "x"], "no usable timestamp in row 4: 'x'"),
        (["3", "2", "7", ""], "no usable timestamp in row 4: None"),
        (["3", "2", "9007199254740993", "9007199254740992"], "float64 cannot tell apart"),
    ],
)
def test_times_written_as_text_are_read_part_by_part(
    shop: Path, cells: list[str], wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.data.readers.delimited._BYTES", 1)
    monkeypatch.setattr("mmkd.column_files._GROUP_ROWS", 1)
    lines = [f"u,i{number},{cell}" for number, cell in enumerate(cells)]
    (shop / "t.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    table = read_table("t.csv", root=shop, wanted=lambda name: True)
    assert table.parquet is not None and len([*table.parquet.parts("timestamp")]) >= 3
    if isinstance(wanted, str):
        with pytest.raises(DataError, match=wanted):
            loaded(shop, "t.csv")
    else:
        assert loaded(shop, "t.csv").log.timestamp.tolist() == wanted


def test_only_the_columns_that_are_named_are_read(shop: Path) -> None:
    frame = pl.read_csv(shop / "log.csv").with_columns(review=pl.lit("long " * 9))
    frame.write_parquet(shop / "log.parquet")
    table = read_table("log.parquet", root=shop, wanted=lambda name: True)
    assert len(table) == 3000 and table.frame.height == 0
    with pytest.raises(DataError, match=r"no column 'revue' \(x\).*did you mean"):
        table.column("revue", setting="x")
    assert table.column("review", setting="x")[0] == frame["review"][0]


def test_an_empty_id_in_parquet_is_named_by_its_row(shop: Path) -> None:
    frame = pl.read_csv(shop / "log.csv")
    frame = frame.with_columns(
        user_id=pl.when(pl.int_range(pl.len()).is_in([800, 1600]))
        .then(pl.lit(" "))
        .otherwise(pl.when(pl.int_range(pl.len()) != 2200).then("user_id"))
    )
    pq.write_table(frame.to_arrow(), shop / "log.parquet", row_group_size=700)
    with pytest.raises(DataError, match=r"'user_id' \(user\) is empty in rows 801, 1601, 2201"):
        loaded(shop, "log.parquet")


def test_coded_ids_are_numbered_by_first_appearance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, "_BLOCK", 2)  # several blocks
    codes = np.array([1, 0, -1, 3, 1, -1], np.int32)
    found = CodedIds.of_numbers(codes, pl.Series(["x", "y", "unused", "w"]))
    assert found.known.to_list() == ["y", "x", "w"]
    assert found.codes.tolist() == [0, 1, -1, 2, 0, -1]
    assert found.text().to_list() == ["y", "x", None, "w", "y", None]
    whole = CodedIds.of(found.text())
    assert whole.known.to_list() == found.known.to_list()
    np.testing.assert_array_equal(whole.codes, found.codes)


@pytest.mark.parametrize("number", [np.int32, np.int64])
@pytest.mark.parametrize("sorted_by", [None, "time", "user"])
def test_events_are_grouped_as_a_stable_sort_would(
    sorted_by: str | None, number: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interactions, "_BLOCK", 64)
    draw = np.random.default_rng(1)
    user, item = draw.integers(0, 30, 900), draw.integers(1, 9, 900)
    timestamp = draw.integers(0, 40, 900).astype(np.float64)
    if sorted_by == "time":
        timestamp.sort()
    if sorted_by == "user":
        order = np.lexsort((timestamp, user))
        user, timestamp = user[order], timestamp[order]
    log = InteractionLog(user.astype(number), item.astype(number), timestamp, ("",) * 30)
    wanted = np.lexsort((timestamp, user))
    found = log.by_user()
    assert (found is None) == (sorted_by == "user")
    np.testing.assert_array_equal(np.arange(900) if found is None else found, wanted)
    seen = Counter(zip(user.tolist(), timestamp.tolist(), strict=True))
    assert log.tied() == sum(count for count in seen.values() if count > 1)
    split = leave_one_out(log, 9)
    np.testing.assert_array_equal(split.items, item[wanted])
    last = wanted[np.cumsum(np.bincount(user)) - 1]  # one event of each user tests, one validates
    assert split.target_items(split.test).tolist() == item[last].tolist()
    before = set(wanted.tolist()) - {*last.tolist(), *wanted[np.cumsum(np.bincount(user)) - 2]}
    assert split.train_counts().tolist() == np.bincount(item[[*before]], minlength=10).tolist()
    assert split.is_train().tolist() == [event in before for event in wanted.tolist()]


def test_items_of_a_saved_file_are_rows_of_the_catalogue(shop: Path) -> None:
    data = loaded(shop, "log.parquet")
    data.save_sequences(shop / "log.sequences")
    kept = pl.read_ipc_stream(shop / "log.sequences")
    raw = pl.read_csv(shop / "log.csv").sort("timestamp", maintain_order=True)
    items: ItemTable = data.items
    for name, rows in kept.select("user", "items").rows():
        wanted = raw.filter(pl.col("user_id") == name)["item_id"].to_list()
        assert [items.ids[row] for row in rows] == wanted


def test_what_is_told_of_a_sequence_file_is_what_it_was_read_with(shop: Path) -> None:
    loaded(shop, "log.csv", timestamp=None).save_sequences(shop / "log.sequences")
    found = inspect_data(shop, items={"path": "items.csv"}, interactions={"path": "log.sequences"})
    assert any("timestamp is null" in note for note in found.notes) and not found.problems
