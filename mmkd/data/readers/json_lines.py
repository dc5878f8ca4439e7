"""JSON lines, one object a line, to columns, as Python's ``json`` reads them but for NaN.

A column's type is found from all its values: whole numbers, numbers, text, true and false, or lists
of them. Where kinds are mixed the column is text as written, ``7`` and ``"007"`` alike. Lists in
lists are one list. What is no JSON (NaN, a number too large), a key that occurs twice and half of a
surrogate pair are refused with their line.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from mmkd.data.readers.delimited import opened
from mmkd.errors import DataError

_LINES = 50_000  # bounds the Python objects of one part
_INT64 = range(-(2**63), 2**63)
_OBJECT = pl.Struct({"object": pl.String})  # its JSON; no reader takes it for text


def parse_json_lines(content: Path | bytes, source: str) -> pl.DataFrame:
    """One JSON object a line; null where an object lacks a key.

    Args:
        content: The file or its bytes.
        source: The file's name, for messages.

    Raises:
        DataError: A line is no JSON object, or holds what is refused; the line is named.
    """
    parts: list[dict[str, pl.Series]] = []
    heights: list[int] = []
    with opened(content) as file:
        lines = enumerate(file, start=1)
        while rows := _objects(lines, source):
            values: dict[str, list[Any]] = defaultdict(list)
            for place, (_, row) in enumerate(rows):
                for key, value in row.items():
                    column = values[key]
                    column.extend([None] * (place - len(column)))
                    column.append(value)
            heights.append(len(rows))
            parts.append(
                {
                    key: _column(column + [None] * (len(rows) - len(column)), key, rows, source)
                    for key, column in values.items()
                }
            )
    names = dict.fromkeys(chain.from_iterable(parts))
    return pl.DataFrame({name: _joined(name, parts, heights) for name in names})


def _objects(lines: Iterator[tuple[int, bytes]], source: str) -> list[tuple[int, dict[str, Any]]]:
    """The objects of the next lines, each with its line's number; none at the file's end."""
    found: list[tuple[int, dict[str, Any]]] = []
    for number, line in lines:
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            value = _DECODER.decode(line.decode("utf-8").strip(" \t\r\n"))
        except UnicodeDecodeError:
            raise DataError(
                f"{source}: line {number} is not UTF-8 text; save the file as UTF-8"
            ) from None
        except RecursionError:
            raise DataError(
                f"{source}: line {number} is nested too deeply; write one object a line"
            ) from None
        except ValueError as wrong:
            raise DataError(
                f"{source}: line {number} is not JSON ({wrong}); write one object a line"
            ) from None
        if not isinstance(value, dict):
            raise DataError(
                f"{source}: line {number} is a JSON {type(value).__name__}; write one object a line"
            )
        found.append((number, value))
        if len(found) == _LINES:
            break
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise ValueError(f"key {twice!r} occurs twice")
    return found


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON; write null")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"{digits} is too large a number")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_no_constant, parse_float=_finite
)


# ---- values to columns


def _column(
    values: list[Any], name: str, rows: list[tuple[int, dict[str, Any]]], source: str
) -> pl.Series:
    try:
        return _series(name, values)
    except UnicodeEncodeError:
        broken = next(number for number, row in rows if not _is_text({name: row.get(name)}))
        raise DataError(
            f"{source}: line {broken}: {name!r} holds half of a surrogate pair, which is no text; "
            "remove it"
        ) from None


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _series(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values} - {type(None)}
    if dict in kinds or (list in kinds and any(_holds_objects(value) for value in values)):
        texts = [None if one is None else {"object": _text(one)} for one in values]
        return pl.Series(name, texts, dtype=_OBJECT)
    if list in kinds:
        lists = [None if one is None else [*_flat(one)] for one in values]
        parts = [*chain.from_iterable(one for one in lists if one is not None)]
        dtype = _dtype({type(part) for part in parts} - {type(None)}, parts)
        if dtype == pl.String:
            lists = [None if one is None else [*map(_text, one)] for one in lists]
        return pl.Series(name, lists, dtype=pl.List(dtype))
    dtype = _dtype(kinds, values)
    return pl.Series(name, [*map(_text, values)] if dtype == pl.String else values, dtype=dtype)


def _dtype(kinds: set[type], values: list[Any]) -> Any:
    if not kinds:
        return pl.Null
    if kinds == {bool}:
        return pl.Boolean
    if kinds == {int} and all(one is None or one in _INT64 for one in values):
        return pl.Int64
    if kinds <= {int, float} and float in kinds:
        return pl.Float64
    return pl.String


def _text(value: Any) -> str | None:
    """A value as JSON writes it, text without its quotes."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for part in value:
            yield from _flat(part)
    else:
        yield value


def _holds_objects(value: Any) -> bool:
    return any(isinstance(part, dict) for part in _flat(value))


def _joined(name: str, parts: list[dict[str, pl.Series]], heights: list[int]) -> pl.Series:
    """A column of all parts, in one type."""
    pieces = [
        part[name] if name in part else pl.Series(name, [None] * height, dtype=pl.Null)
        for part, height in zip(parts, heights, strict=True)
    ]
    kinds = {piece.dtype for piece in pieces} - {pl.Null()}
    if len(kinds) > 1:
        return _series(name, [value for piece in pieces for value in piece.to_list()])
    dtype = next(iter(kinds), pl.Null())
    return pl.concat([piece.cast(dtype) for piece in pieces])
