"""Malformed inputs by a grammar a format, read as Python's own strict readers do, or refused.

    python -m benchmarks.malformed                   # 100 of each of four formats: a minute
    python -m benchmarks.malformed --inputs 1000 --seed 7

CSV is held to ``csv.reader(strict=True)``, JSON lines to ``json`` without NaN and repeated keys,
columns of Parquet to the values they were written from, recipes to PyYAML's safe loader without
repeated keys. An input passes where it is refused with a message for its user, or read as the
reference reads it; a traceback, more than five seconds, or other content is an exception. Exit
status 1 if there is any.
"""

import argparse
import csv
import io
import json
import math
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from benchmarks.measure import print_table
from mmkd.config.recipe import load_recipe
from mmkd.data.readers import read_table
from mmkd.data.readers.columns import read_ids, read_lists, read_timestamps
from mmkd.errors import MmkdError

_LIMIT_S = 5.0
_REFUSED = object()


@dataclass
class Row:
    """A format.

    Attributes:
        fault: What sort of input.
        tried: How many were made.
        survived: How many were read as the reference reads them, or refused as they may be.
        refused: How many of these were refused.
        refused_too: How many of those the reference refuses too.
        exceptions: What happened otherwise.
    """

    fault: str
    tried: int = 0
    survived: int = 0
    refused: int = 0
    refused_too: int = 0
    exceptions: list[str] = field(default_factory=list)


class _TooLongError(BaseException):
    """An input took longer than it may."""


def rows(*, inputs: int, seed: int) -> Iterator[Row]:
    """A row a format.

    Args:
        inputs: Of each format.
        seed: Of the inputs.
    """
    for name, trial in _TRIALS.items():
        draw, row = random.Random(f"{seed} {name}"), Row(f"malformed {name}")
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(inputs):
                _try(row, trial, draw, Path(folder))
        yield row


def _try(
    row: Row, trial: Callable[[random.Random, Path], Any], draw: random.Random, to: Path
) -> None:
    """One input: what a trial gives is (what it is, how it is read, what the reference reads)."""
    row.tried += 1
    told, read, wanted = trial(draw, to)
    try:
        with _limited(_LIMIT_S):
            found = read()
    except MmkdError:
        row.refused += 1
        row.refused_too += wanted is _REFUSED
        row.survived += 1
        return
    except BaseException as error:  # whatever it is, a user saw a traceback or waited
        row.exceptions.append(f"{told!r}: {type(error).__name__}: {error}")
        return
    if wanted is not _REFUSED and _same(found, wanted):
        row.survived += 1
    else:
        reference = "refuses it" if wanted is _REFUSED else f"reads {wanted!r}"
        row.exceptions.append(f"{told!r}: read as {found!r}; the reference {reference}")


def _same(found: Any, wanted: Any) -> bool:
    """Equal, numbers of another type and NaN included."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_same(found[k], wanted[k]) for k in found)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(found, float) and isinstance(wanted, float) and math.isnan(wanted):
        return math.isnan(found)
    return bool(found == wanted)


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _TooLongError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- CSV

_CELLS = ('"', '"', '""', "\\", '\\"', ",", "\n", "\r\n", "\r", "a", "007", "é", " ", "\x00", ";")


def _csv(draw: random.Random, folder: Path) -> tuple[Any, Callable[[], Any], Any]:
    lines = ("".join(draw.choices(_CELLS, k=draw.randrange(12))) for _ in range(draw.randrange(6)))
    text = "\n".join(["x,y", *lines]).encode()
    if draw.random() < 0.1:
        text = text[: len(text) // 2] + b"\xff" + text[len(text) // 2 :]
    escape = draw.choice([None, None, "\\"])
    (folder / "t.csv").write_bytes(text)

    def read() -> Any:
        frame = read_table("t.csv", root=folder, escape=escape).frame
        return [frame.columns, *map(list, frame.rows())]

    return text, read, _csv_reference(text, escape)


def _csv_reference(text: bytes, escape: str | None) -> Any:
    try:
        lines = io.StringIO(text.decode(), newline="")
        header, *body = [row for row in csv.reader(lines, strict=True, escapechar=escape) if row]
    except (csv.Error, UnicodeDecodeError):
        return _REFUSED
    if not body or max(map(len, body)) > len(header):
        return _REFUSED
    return [
        header,
        *([cell or None for cell in row] + [None] * (len(header) - len(row)) for row in body),
    ]


# ---- JSON lines

_SOUND = ("1", "1.5", '"x"', "null", "true", "[1, 2]", '["a", null]', "[[1], [2]]", '{"b": 1}')
_VALUES = (
    *("1", "-0", "9007199254740993", "123456789012345678901234567890", "1.5", "1e3", "1E400", "01"),
    *(
        "NaN",
        "Infinity",
        "-Infinity",
        "null",
        "true",
        "tru",
        '"x"',
        '"\\ud800"',
        '"\\u00e9"',
        '"\t"',
    ),
    *('"nan"', "'x'", "[1, 2]", '["a", null]', "[[1], [2]]", "{}", '{"b": 1}', '{"b": 1, "b": 2}'),
    *('"', "[", "{", "[1,]", '""', "1.0", '"007"', "7"),
)
_ENDS = (*("",) * 30, ",", " ", "}", "\r", "//", "\x00")


def _jsonl(draw: random.Random, folder: Path) -> tuple[Any, Callable[[], Any], Any]:
    usual = draw.choices(_SOUND, k=3) + draw.choices(_VALUES, k=draw.randrange(2))
    lines = []
    for _ in range(draw.randrange(1, 6)):
        keys = draw.sample(["a", "b", "a b", ""], k=draw.randrange(3))
        keys += draw.choices([[], keys[:1]], weights=[19, 1])[0]
        pairs = (f"{json.dumps(key)}: {draw.choice(usual)}" for key in keys)
        lines.append("{" + ", ".join(pairs) + "}" + draw.choice(_ENDS))
    text = "\n".join(lines)
    (folder / "t.jsonl").write_text(text, encoding="utf-8", newline="")

    def read() -> Any:
        frame = read_table("t.jsonl", root=folder).frame
        return {name: frame[name].to_list() for name in frame.columns}

    return text, read, _jsonl_reference(text)


def _jsonl_reference(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key is repeated")
        return dict(pairs)

    def never(word: str) -> None:
        raise ValueError(word)

    try:
        found = [
            json.loads(line, object_pairs_hook=once, parse_constant=never)
            for line in text.split("\n")
            if line.strip()
        ]
    except ValueError:
        return _REFUSED
    columns = dict.fromkeys(key for row in found for key in row)
    return {key: _column([row.get(key) for row in found]) for key in columns}


def _column(values: list[Any]) -> list[Any]:
    """The values in one type: lists where one is, text as written where kinds are mixed."""
    flat = [_flat(one) if isinstance(one, list) else one for one in values]
    if any(isinstance(one, dict) for one in values) or any(
        isinstance(part, dict) for one in flat if isinstance(one, list) for part in one
    ):
        return [None if one is None else {"object": _written(one)} for one in values]
    if any(isinstance(one, list) for one in flat):
        lists = [one if one is None or isinstance(one, list) else [one] for one in flat]
        if _mixed([part for one in lists if one is not None for part in one]):
            lists = [one if one is None else [*map(_written, one)] for one in lists]
        return lists
    return [*map(_written, flat)] if _mixed(flat) else flat


def _mixed(values: list[Any]) -> bool:
    kinds = {type(one) for one in values} - {type(None)}
    wide = kinds == {int} and any(not -(2**63) <= one < 2**63 for one in values if one is not None)
    return wide or not (len(kinds) <= 1 or kinds == {int, float})


def _flat(value: list[Any]) -> list[Any]:
    parts = [_flat(one) if isinstance(one, list) else [one] for one in value]
    return [one for part in parts for one in part]


def _written(value: Any) -> Any:
    plain = value is None or isinstance(value, str)
    return value if plain else json.dumps(value, ensure_ascii=False)


# ---- columns of Parquet

_WIDE = 2**53
_IDS: tuple[tuple[pa.DataType, tuple[Any, ...]], ...] = (
    (pa.int64(), (1, 7, _WIDE, _WIDE + 1, -1, 2**63 - 1, None)),
    (pa.uint64(), (1, 2**63, 2**64 - 1)),
    (
        pa.float64(),
        (1.0, 7.0, float(_WIDE), float(_WIDE - 1), 1.15e18, 0.5, math.inf, math.nan, None),
    ),
    (pa.float32(), (1.0, 2.0**24, 2.0**24 - 1, 1e9, math.inf)),
    (pa.string(), ("a", " a", "nan", "007", "", None)),
    (pa.decimal128(38, 0), (Decimal(1), Decimal(10**30))),
    (pa.decimal128(10, 2), (Decimal("1.00"), Decimal("2.50"))),
    (pa.binary(), (b"a", b"\xff")),
    (pa.bool_(), (True, False)),
    (pa.list_(pa.string()), (["a"], [])),
)
_LABELS: tuple[tuple[pa.DataType, tuple[Any, ...]], ...] = (
    (pa.list_(pa.string()), (["a", "b"], [], [None], None)),
    (pa.list_(pa.list_(pa.string())), ([["a"], ["b", "c"]], [[]], [None, ["d"]], None)),
    (pa.list_(pa.int64()), ([1, _WIDE + 1], [])),
    (pa.list_(pa.struct([("name", pa.string())])), ([{"name": "x"}],)),
    (pa.list_(pa.binary()), ([b"\xff"],)),
    (pa.list_(pa.string(), 2), (["a", "b"],)),
    (pa.struct([("name", pa.string())]), ({"name": "x"},)),
)
_FINE = 1_700_000_000_123_456_789
_TIMES: tuple[tuple[pa.DataType, tuple[Any, ...]], ...] = (
    (pa.int64(), (1, 1_700_000_000, _FINE, _FINE + 1, _FINE + 1000)),
    (pa.float64(), (1.5, 1.7e9, float(_FINE), math.nan, math.inf)),
    (pa.float32(), (1.5, 100.0, 1.7e9)),
    (pa.timestamp("ns"), (_FINE, _FINE + 1, _FINE + 1000)),
    (pa.timestamp("us"), (1, _FINE // 1000)),
    (pa.string(), ("1", "2.5", str(_FINE), str(_FINE + 1), "soon", "2024-03-01T12:00:00.0000001")),
)


def _parquet(draw: random.Random, folder: Path) -> tuple[Any, Callable[[], Any], Any]:
    what, kinds = draw.choice([("ids", _IDS), ("labels", _LABELS), ("times", _TIMES)])
    dtype, values = draw.choice(kinds)
    cells = [draw.choice(values) for _ in range(draw.randrange(1, 5))]
    pq.write_table(pa.table({"x": pa.array(cells, dtype)}), folder / "t.parquet")

    def read() -> Any:
        table = read_table("t.parquet", root=folder)
        if what == "ids":
            return read_ids(table, "x", setting="id").to_list()
        if what == "labels":
            return read_lists(table, "x", setting="attributes", separator="|").to_list()
        return _order(read_timestamps(table, "x", setting="timestamp").tolist())

    wanted = {"ids": _ids_reference, "labels": _labels_reference, "times": _times_reference}[what]
    return (what, str(dtype), cells), read, wanted(cells)


def _ids_reference(cells: list[Any]) -> Any:
    if any(one is None or one == "" or isinstance(one, bytes | bool | list) for one in cells):
        return _REFUSED
    if any(isinstance(one, float) and not one.is_integer() for one in cells):
        return _REFUSED
    if any(isinstance(one, Decimal) and "." in str(one) for one in cells):
        return _REFUSED
    return [one if isinstance(one, str) else str(int(one)) for one in cells]


def _labels_reference(cells: list[Any]) -> Any:
    parts = [_flat(one) if isinstance(one, list) else [] for one in cells]
    return [list(dict.fromkeys(str(p) for p in one if p is not None)) for one in parts]


def _times_reference(cells: list[Any]) -> Any:
    if any(one == "soon" or (isinstance(one, float) and not math.isfinite(one)) for one in cells):
        return _REFUSED
    if any(isinstance(one, str) and "T" in one for one in cells):
        return _REFUSED
    return _order([Decimal(one) for one in cells])


def _order(times: list[Any]) -> list[int]:
    """Which time stands where among the different ones: never tied, never swapped."""
    return [
        int(place) for place in np.unique(np.array(times, dtype=object), return_inverse=True)[1]
    ]


# ---- recipes

_RECIPE = """name: r
seed: 0
data:
  root: .
  items: {path: items.csv, id: item_id}
  interactions: {path: log.csv}
task: next_item
student:
  embedding: {width: 8}
  backbone: {kind: sasrec, layers: 1, heads: 2}
  score_with: id
objective:
  recommendation: {kind: softmax}
training: {epochs: 2, lr: 1e-3}
"""
_SIGNS = (
    *("!!int abc", "!!float x", "!!timestamp 2024-13-45", "!!python/object:os.system x", "&a *a"),
    *("{", "}", "[", "]", ":", "- ", "\t", "\x00", "é", "seed: 1", "'", '"', "~", "null", ".nan"),
    *(
        "9" * 5000,
        "[" * 3000,
        "1_000",
        "0x1f",
        "0o7",
        "${seed}",
        "${nothing}",
        "???",
        "<<: *x",
        "%",
    ),
)


def _recipe(draw: random.Random, folder: Path) -> tuple[Any, Callable[[], Any], Any]:
    text = _RECIPE
    for _ in range(draw.randrange(1, 3)):
        place = draw.randrange(len(text))
        sign = draw.choice(_SIGNS)
        kept = draw.choice([place, min(place + len(sign), len(text))])
        text = text[:place] + sign + text[kept:]
    file = folder / "r.yaml"
    file.write_text(text, encoding="utf-8", newline="")

    def read() -> Any:
        recipe = load_recipe(str(file))
        return {"name": recipe.name, "seed": recipe.seed}

    return text, read, _recipe_reference(text)


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader that takes no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if any(count > 1 for count in Counter(map(repr, keys)).values()):
            raise yaml.YAMLError("a key is repeated")
        found: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return found


def _recipe_reference(text: str) -> Any:
    try:
        found = yaml.load(text, Loader=_StrictLoader)
        name, seed = found.get("name"), found.get("seed", 0)
        return {"name": name, "seed": seed if isinstance(seed, int) else 0}
    except Exception:  # the reference refuses it, in whatever way
        return _REFUSED


_TRIALS: dict[str, Callable[[random.Random, Path], tuple[Any, Callable[[], Any], Any]]] = {
    "CSV": _csv,
    "JSON lines": _jsonl,
    "Parquet columns": _parquet,
    "recipes": _recipe,
}


def main() -> int:
    """Prints the table; 1 if an input was neither refused nor read as the reference reads it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100, help="of each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shown", type=int, default=5, help="exceptions told of each format")
    given = parser.parse_args()
    found = list(rows(inputs=given.inputs, seed=given.seed))
    print_table(
        ["fault", "tried", "survived", "refused", "by the reference too"],
        [
            [one.fault, *map(str, (one.tried, one.survived, one.refused, one.refused_too))]
            for one in found
        ],
    )
    for row in found:
        for told in row.exceptions[: given.shown]:
            print(f"{row.fault}: {told[:600]}")
    return int(any(row.exceptions for row in found))


if __name__ == "__main__":
    sys.exit(main())
