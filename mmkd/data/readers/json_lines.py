"""JSON lines, one object a line, to columns, as Python's ``json`` reads them but for NaN.

A column's type is found from all its values: whole numbers, numbers, text, true and false, or lists
of them. Where kinds are mixed the column is text as written, ``7`` and ``"007"`` alike; and whole
numbers that a float would round stay as they are beside floats (`NUMBERS`). Lists in lists are one
list. What is no JSON (NaN, a number too large), a key that occurs twice and half of a
surrogate pair are refused with their line.
"""

import json
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from mmkd.data.ids import NUMBERS
from mmkd.data.readers.packing import opened
from mmkd.errors import DataError

_LINES = 50_000  # bounds the Python objects of one part
_INT64 = range(-(2**63), 2**63)
_EXACT = 2**53  # float64 holds every whole number up to here
_OBJECT = pl.Struct({"object": pl.String})  # its JSON; no reader takes it for text


def json_line_parts(
    content: Path | bytes, source: str, *, wanted: Callable[[str], bool] | None = None
) -> Iterator[pl.DataFrame]:
    """One JSON object a line; null where an object lacks a key.

    Args:
        content: The file or its bytes.
        source: The file's name, for messages.
        wanted: Whether a column's values are kept; None keeps all.

    Returns:
        First all columns without rows, then the rows of those that are wanted, some at a time; of
        the first one, empty, where none is.

    Raises:
        DataError: A line is no JSON object, or holds what is refused; the line is named.
    """
    parts: deque[tuple[int, dict[str, _Part]]] = deque()
    facts: dict[str, _Facts] = {}
    with opened(content) as file:
        lines = enumerate(file, start=1)
        while rows := _objects(lines, source):
            values: dict[str, list[Any]] = defaultdict(list)
            for place, (_, row) in enumerate(rows):
                for key, value in row.items():
                    column = values[key]
                    column.extend([None] * (place - len(column)))
                    column.append(value)
            kept = {}
            for key, column in values.items():
                part = _part(column + [None] * (len(rows) - len(column)), key, rows, source)
                facts[key] = facts.get(key, _Facts()) | part.facts
                if wanted is None or wanted(key):
                    kept[key] = part
            parts.append((len(rows), kept))
    types = {name: one.dtype() for name, one in facts.items()}
    yield pl.DataFrame(schema=types)
    names = [name for name in types if wanted is None or wanted(name)]
    names = names or list(types)[:1]  # empty, and counts the rows
    while parts:  # what a cell is does not depend on where they were parted
        height, held = parts.popleft()
        yield pl.DataFrame(
            {
                name: held[name].column(types[name])
                if name in held
                else pl.Series(name, [None] * height, dtype=types[name])
                for name in names
            }
        )


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


@dataclass(frozen=True)
class _Facts:
    """What a column's type is chosen by.

    Attributes:
        kinds: Of the values, or of what their lists hold; null left out.
        lists: Whether there is a list.
        objects: Whether there is an object.
        long: Whether a whole number is too long for 64 bits.
        rounds: Whether float64 would round a whole number.
    """

    kinds: frozenset[type] = frozenset()
    lists: bool = False
    objects: bool = False
    long: bool = False
    rounds: bool = False

    @classmethod
    def of(cls, values: list[Any]) -> "_Facts":
        lists = list in set(map(type, values))
        flat = [*chain.from_iterable(map(_flat, values))] if lists else values
        kinds = frozenset(map(type, flat)) - {type(None)}
        whole = [value for value in flat if type(value) is int] if int in kinds else []
        return cls(
            kinds,
            lists,
            dict in kinds,
            any(value not in _INT64 for value in whole),
            any(abs(value) > _EXACT for value in whole),
        )

    def __or__(self, other: "_Facts") -> "_Facts":
        return _Facts(
            self.kinds | other.kinds,
            self.lists or other.lists,
            self.objects or other.objects,
            self.long or other.long,
            self.rounds or other.rounds,
        )

    def dtype(self) -> Any:
        """The column's type, `_OBJECT` where no reader takes it."""
        if self.objects:
            return _OBJECT
        one = self._scalar()
        return pl.List(pl.String if one == NUMBERS else one) if self.lists else one

    def _scalar(self) -> Any:
        if not self.kinds:
            return pl.Null()
        if self.kinds == {bool}:
            return pl.Boolean()
        if self.kinds == {int} and not self.long:
            return pl.Int64()
        if self.kinds <= {int, float} and float in self.kinds:
            return NUMBERS if self.rounds else pl.Float64()
        return pl.String()


@dataclass(frozen=True)
class _Part:
    """A column's values of one part of the file, none of them altered.

    Attributes:
        facts: What of the column's type they ask for.
        cells: The values, where one type holds them as they are; else as JSON.
        as_json: Whether they are JSON.
    """

    facts: _Facts
    cells: pl.Series
    as_json: bool

    @classmethod
    def of(cls, name: str, values: list[Any]) -> "_Part":
        facts = _Facts.of(values)
        one_type = len(facts.kinds) < 2 and not (facts.objects or facts.long)
        if one_type and (not facts.lists or all(map(_is_flat, values))):
            return cls(facts, pl.Series(name, values, dtype=facts.dtype()), False)
        texts = [None if one is None else json.dumps(one, ensure_ascii=False) for one in values]
        return cls(facts, pl.Series(name, texts, dtype=pl.String), True)

    def column(self, dtype: Any) -> pl.Series:
        """As a column of a type that all parts can have."""
        if self.cells.dtype == dtype and not self.as_json:
            return self.cells
        values = self.cells.to_list()
        if self.as_json:
            values = [None if one is None else json.loads(one) for one in values]
        return pl.Series(self.cells.name, [_as(dtype, value) for value in values], dtype=dtype)


def _part(
    values: list[Any], name: str, rows: list[tuple[int, dict[str, Any]]], source: str
) -> _Part:
    try:
        return _Part.of(name, values)
    except UnicodeEncodeError:
        broken = next(number for number, row in rows if not _is_text({name: row.get(name)}))
        raise DataError(
            f"{source}: line {broken}: {name!r} holds half of a surrogate pair, which is no text; "
            "remove it"
        ) from None


def _as(dtype: Any, value: Any) -> Any:
    """A value as its column has it."""
    if value is None:
        return None
    if dtype == _OBJECT:
        return {"object": _text(value)}
    if dtype == NUMBERS:
        return {"number": _text(value)}
    if isinstance(dtype, pl.List):
        return [_as(dtype.inner, part) for part in _flat(value)]
    return _text(value) if dtype == pl.String else value


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any) -> str | None:
    """A value as JSON writes it, text without its quotes."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _is_flat(value: Any) -> bool:
    """Whether it is null, or a list without lists."""
    return value is None or (isinstance(value, list) and list not in set(map(type, value)))


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for part in value:
            yield from _flat(part)
    else:
        yield value
