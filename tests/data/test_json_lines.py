"""JSON lines: the values that Python's json gives, in columns of one type, or the line at fault."""

import json
import random
from typing import Any

import polars as pl
import pytest

from mmkd.data.readers.json_lines import parse_json_lines
from mmkd.errors import DataError


def parse(*lines: str) -> pl.DataFrame:
    return parse_json_lines("\n".join(lines).encode("utf-8", "surrogatepass"), "t.jsonl")


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (["7", '"007"'], ["7", "007"]),
        (["1", "2.5", "null"], [1.0, 2.5, None]),
        (["9007199254740993", "1"], [9007199254740993, 1]),
        (["123456789012345678901234567890", "1"], ["123456789012345678901234567890", "1"]),
        (["true", "1"], ["true", "1"]),
        ([r'[["x"], ["y", ["z"]]]', '"w"', "null"], [["x", "y", "z"], ["w"], None]),
        (["[1, 2]", "[2.5]"], [[1.0, 2.0], [2.5]]),
        (['[1, "a"]', "[null]"], [["1", "a"], [None]]),
        (["[]", "null"], [[], None]),
    ],
)
def test_values_of_a_column(values: list[str], wanted: list[Any]) -> None:
    assert parse(*(f'{{"a": {one}}}' for one in values))["a"].to_list() == wanted


def test_types_are_found_over_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmkd.data.readers.json_lines._LINES", 2)
    draw = random.Random(0)
    makers: list[Any] = [
        lambda: draw.randrange(-9, 9),
        lambda: draw.choice(["a", "é", "7"]),
        lambda: None,
        lambda: draw.random(),
    ]
    for _ in range(200):
        kinds = draw.sample(makers, k=2)
        rows = [{key: draw.choice(kinds)() for key in draw.sample("ab", k=2)} for _ in range(7)]
        found = parse(*map(json.dumps, rows))
        for key in "ab":
            values = [row[key] for row in rows]
            if any(isinstance(one, str) for one in values):
                values = [
                    one if one is None or isinstance(one, str) else str(one) for one in values
                ]
            assert found[key].to_list() == values


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": NaN}', r"line 2 is not JSON \(NaN is no JSON; write null\)"),
        ('{"a": -Infinity}', "line 2 is not JSON .*Infinity is no JSON"),
        ('{"a": 1e999}', "line 2 .*1e999 is too large a number"),
        ('{"a": 1, "b": 2, "a": 3}', "line 2 .*key 'a' occurs twice"),
        ('{"a": {"b": 1, "b": 2}}', "line 2 .*key 'b' occurs twice"),
        ('{"a": "x\ty"}', "line 2 is not JSON .*control character"),
        ("{'a': 1}", "line 2 is not JSON"),
        ('{"a": 1},', "line 2 is not JSON .*Extra data"),
        ("[1]", "line 2 is a JSON list"),
        ('{"a": "\\ud800"}', "line 2: 'a' holds half of a surrogate pair"),
        ("[" * 100_000, "line 2 is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "line 2 is not JSON"),
    ],
)
def test_the_line_at_fault_is_named(line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse('{"a": "x"}', line)


def test_a_key_without_a_name_is_a_column_without_one() -> None:
    assert parse('{"": 1, "a": 2}').to_dict(as_series=False) == {"": [1], "a": [2]}


def test_objects_in_cells_are_no_text() -> None:
    frame = parse('{"a": [{"name": "X"}], "b": 1}', '{"a": "x"}')
    assert isinstance(frame.schema["a"], pl.Struct)
    assert frame["b"].to_list() == [1, None]
