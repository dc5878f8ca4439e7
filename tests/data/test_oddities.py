"""Cells that are odd but not wrong: read in the sense they have, and told with a count."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from mmkd import Dataset
from mmkd.data.readers import Table
from mmkd.data.readers.columns import read_lists, read_text
from mmkd.errors import DataError


def table(*cells: Any, dtype: Any = None) -> Table:
    return Table(pl.DataFrame({"tags": pl.Series(cells, dtype=dtype)}), "t")


def labels(of: Table) -> list[list[str]]:
    found: list[list[str]] = read_lists(of, "tags", setting="attributes", separator="|").to_list()
    return found


@pytest.mark.parametrize(
    ("cells", "dtype", "wanted"),
    [
        ([[["a"], ["b", "a"]], [[]], None], None, [["a", "b"], [], []]),
        ([[["a"], None], None], None, [["a"], []]),
        ([[[["a"], ["b"]]], []], None, [["a", "b"], []]),
        ([["a", "b"]], pl.Array(pl.String, 2), [["a", "b"]]),
        ([[["a", "b"], ["c", "d"]]], pl.List(pl.Array(pl.String, 2)), [["a", "b", "c", "d"]]),
        ([[[1], [2]]], None, [["1", "2"]]),
    ],
)
def test_lists_in_lists_are_one_list(cells: list[Any], dtype: Any, wanted: Any) -> None:
    assert labels(table(*cells, dtype=dtype)) == wanted


def test_text_joins_the_parts_of_lists_in_lists() -> None:
    cells = table([["a"], ["b", "a"]], [[]], None)
    assert read_text(cells, "tags", setting="text").to_list() == ["a, b, a", None, None]


@pytest.mark.parametrize("cell", [[{"name": "X"}], [[{"name": "X"}]]])
def test_lists_of_objects_are_refused(cell: Any) -> None:
    for read in (labels, lambda of: read_text(of, "tags", setting="text")):
        with pytest.raises(DataError, match=r"column 'tags' .*holds lists of Struct"):
            read(table(cell))


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("['a', 'b|c']", ["a", "b|c"]),
        ('["a", "b"]', ["a", "b"]),
        ("['a' 'b'\n 'c']", ["a", "b", "c"]),  # as NumPy writes an array
        ("[1, 2]", ["1", "2"]),
        ("[1e3, -1.50]", ["1e3", "-1.50"]),
        # quotes and blanks inside a label part nothing
        (repr(["it's 'odd' 'so'", 'a" "b', "\\' '"]), ["it's 'odd' 'so'", 'a" "b', "\\' '"]),
        (str(np.array(["it's 'x' 'y'", "b  c"])), ["it's 'x' 'y'", "b  c"]),
        ("[]", []),
        ("[a|b]", ["[a", "b]"]),  # no list: brackets are brackets
        ("[{'a': 1}]", ["[{'a': 1}]"]),
        ("[" * 5000 + "]" * 5000, ["[" * 5000 + "]" * 5000]),
        ("a|b", ["a", "b"]),
    ],
)
def test_a_list_that_is_written_as_text_is_one(cell: str, wanted: list[str]) -> None:
    assert labels(table(cell, "plain")) == [wanted, ["plain"]]


def test_what_is_odd_is_told_with_its_count(tmp_path: Path) -> None:
    items = [
        {"item_id": f"i{number}", "name": name, "tags": tags}
        for number, (name, tags) in enumerate(
            [("nan", "['a', 'b']"), ("None", "c"), ("Teapot", "['d']"), ("Cup", "e")]
        )
    ]
    items[3]["item_id"] = "i3 "
    events = [
        {"user_id": "nan", "item_id": one["item_id"], "timestamp": n} for n, one in enumerate(items)
    ]
    for name, rows in (("items.jsonl", items), ("log.jsonl", events)):
        (tmp_path / name).write_text("\n".join(json.dumps(row) for row in rows))
    data = Dataset.load(
        tmp_path,
        items={"path": "items.jsonl", "title": "name", "attributes": "tags"},
        interactions={"path": "log.jsonl"},
    )
    told = [note.partition(": ")[2] for note in data.notes]
    assert told == [
        "1 of 4 cells of column 'item_id' (id), such as 'i3 ', have blanks around them, which are "
        "part of the id",
        "2 of 4 cells of column 'name' (title), such as 'nan', 'None', are taken as text; leave "
        "the cell empty for none",
        "2 of 4 cells of column 'tags' (attributes), such as \"['a', 'b']\", \"['d']\", are "
        "lists as text: their parts are the labels",
        "4 of 4 cells of column 'user_id' (user), such as 'nan', are taken as text; leave the cell "
        "empty for none",
        "1 of 4 cells of column 'item_id' (item), such as 'i3 ', have blanks around them, which "
        "are part of the id",
    ]
