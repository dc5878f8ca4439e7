"""JSON lines: the values that Python's json gives, in columns of one type, or the line at fault."""

import json
import random
from typing import Any

import polars as pl
import pytest

from mmkd.data.readers import Table
from mmkd.data.readers.columns import read_ids, read_text, read_timestamps
from mmkd.data.readers.json_lines import json_line_parts
from mmkd.data.timestamps import parse_numbers
from mmkd.errors import DataError


def parse(*lines: str) -> pl.DataFrame:
    return pl.concat(json_line_parts("\n".join(lines).encode("utf-8", "surrogatepass"), "t.jsonl"))


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


VALUES: list[Any] = [
    None,
    True,
    3,
    -1.5,
    2**53 + 1,
    2**70,
    1e300,
    "x",
    "3",
    [],
    [2],
    [2, 0.5],
    [[2**53 + 1], None],
    ["é", 1],
    {"a": 1},
    [{"a": "b"}],
]


def test_a_cell_does_not_depend_on_where_the_file_is_parted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(0)
    for _ in range(150):
        chosen = draw.sample(VALUES, k=draw.randint(1, 4))
        rows = [json.dumps({"a": draw.choice(chosen), "b": n}) for n in range(6)]
        rows[draw.randrange(6)] = '{"b": null}'
        found = []
        for lines in (1, 2, 4, 50):
            monkeypatch.setattr("mmkd.data.readers.json_lines._LINES", lines)
            found.append(parse(*rows))
        for other in found[1:]:
            assert other.schema == found[0].schema
            assert other.equals(found[0])


@pytest.mark.parametrize("lines", [1, 2, 50])
def test_whole_numbers_stay_exact_beside_floats(
    lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmkd.data.readers.json_lines._LINES", lines)
    table = Table(parse(*(f'{{"a": {n}}}' for n in (2**53 + 1, 0.5, "null", -7))), "t.jsonl")
    text = read_text(table, "a", setting="text")
    assert text.to_list() == ["9007199254740993", "0.5", None, "-7"]
    with pytest.raises(DataError, match=r"column 'a' \(id\) holds numbers .*beyond 2\^53"):
        read_ids(table, "a", setting="id")
    numbers, bad = parse_numbers(table.frame["a"])
    assert bad.tolist() == [False, False, True, False] and numbers[1] == 0.5
    whole = Table(table.frame.filter(pl.Series([True, True, False, True])), "t.jsonl")
    with pytest.raises(DataError, match="which it rounds, so that different ones tie"):
        read_timestamps(whole, "a", setting="timestamp")


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
