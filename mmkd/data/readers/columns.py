"""A Table's columns to ids, text and numbers, with the offending rows named where they will not go.

Rows are counted from 1, the header not counted.
"""

import ast
import re
from contextlib import suppress

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.data.ids import NUMBERS, CodedIds, ids_as_text, why_no_ids
from mmkd.data.readers.tables import Table
from mmkd.data.timestamps import (
    Unit,
    parse_numbers,
    parse_timestamps,
    why_tied,
)
from mmkd.errors import DataError, shown

# a text of Python with its quotes, whole, and the gap before the next one
_TEXT_AND_GAP = re.compile(r"""(?s)('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(\s+(?=['"]))?""")


def read_ids(table: Table, name: str, *, setting: str) -> pl.Series:
    """Reads external ids as text, as they are written; whole numbers become their decimal digits.

    Args:
        table: The table.
        name: The column.
        setting: The setting that named it, for messages.

    Returns:
        [n] text without nulls.

    Raises:
        DataError: If the column is absent, holds no ids, or an id is missing or blank.
    """
    column = table.column(name, setting=setting)
    ids = ids_as_text(column)
    if ids is None:
        raise DataError(f"{table.source}: column {name!r} ({setting}) {why_no_ids(column)}")
    missing = ids.is_null() | (ids.str.strip_chars() == "")
    if missing.any():
        raise DataError(_missing(table, name, setting, missing))
    return ids


def read_codes(table: Table, name: str, *, setting: str) -> CodedIds:
    """As `read_ids`, each different id's text held once."""
    ids = table.coded(name, setting=setting)
    if isinstance(ids, str):
        raise DataError(f"{table.source}: column {name!r} ({setting}) {ids}")
    blank = np.append((ids.known.str.strip_chars() == "").to_numpy(), True)  # -1 is missing
    if (ids.codes < 0).any() or blank[:-1].any():
        raise DataError(_missing(table, name, setting, blank[ids.codes]))
    return ids


def read_text(table: Table, name: str, *, setting: str) -> pl.Series:
    """Reads cells as text; the parts of a list are joined by commas.

    Returns:
        [n] stripped text; null where it is missing or blank.

    Raises:
        DataError: If the column is absent or holds neither text, numbers nor lists of them.
    """
    column = table.column(name, setting=setting)
    dtype = column.dtype
    if isinstance(dtype, pl.List | pl.Array):
        text = _lists(table, column, setting).list.drop_nulls().list.join(", ")
    elif (whole := ids_as_text(column)) is not None:
        text = whole
    elif dtype == NUMBERS:
        text = column.struct.field("number")
    elif dtype.is_float():
        text = column.fill_nan(None).cast(pl.String)
    elif dtype.is_decimal() or dtype in (pl.Boolean, pl.Date, pl.Datetime):
        text = column.cast(pl.String)
    else:
        raise DataError(
            f"{table.source}: column {name!r} ({setting}) holds {dtype}, which is not text"
        )
    text = text.str.strip_chars()
    return text.set(text == "", None)


def read_lists(table: Table, name: str, *, setting: str, separator: str) -> pl.Series:
    """Reads cells as lists of labels, each label once, blank ones dropped.

    Args:
        table: The table.
        name: The column; a column of lists is taken as it is.
        setting: The setting that named it, for messages.
        separator: What parts the labels of a text cell, unless the file's format says it. A cell
            that is a list written as text, as pandas writes one, is read as that list.

    Returns:
        [n] lists of text, possibly empty.

    Raises:
        DataError: If the column is absent or holds neither text nor lists.
    """
    column = table.column(name, setting=setting)
    if isinstance(column.dtype, pl.List | pl.Array):
        cells = _lists(table, column, setting)
    else:
        used = " " if name in table.space_separated else separator
        if not used:
            raise DataError(f"{table.source}: {setting}: the separator is empty; use '|' or ' '")
        text = read_text(table, name, setting=setting)
        cells = text.str.split(used)
        lists = written_lists(text)
        cells = lists.zip_with(lists.is_not_null(), cells)
    label = pl.element().str.strip_chars()
    labels = cells.list.eval(label.filter(label != "")).list.unique(maintain_order=True)
    return labels.fill_null(pl.Series([[]], dtype=pl.List(pl.String)))


def read_timestamps(
    table: Table,
    name: str,
    *,
    setting: str,
    unit: Unit | None = None,
    format: str | None = None,
) -> NDArray[np.float64]:
    """Reads numbers, dates, or ISO dates (to seconds; UTC where no zone is named).

    Args:
        table: The table.
        name: The column.
        setting: The setting that named it, for messages.
        unit: What numbers count; None takes them as they are.
        format: strptime's codes for text that is no ISO date.

    Returns:
        [n] float64, finite.

    Raises:
        DataError: If the column is absent or one is missing, not finite, or not parsable, or if the
            column's type or float64 cannot tell different ones apart.
    """
    column = table.column(name, setting=setting, whole=format is None)
    values, bad = parse_timestamps(column, unit=unit, format=format)
    if (tied := why_tied(column, values)) is not None:
        raise DataError(f"{table.source}: column {name!r} ({setting}) {tied}")
    if bad.any():
        remedy = (
            "use numbers or ISO dates such as 2024-03-01T12:00:00, one kind throughout, parts of a "
            "second to microseconds, say how "
            "dates are written with timestamp_format such as '%d/%m/%Y %H:%M', or set timestamp to "
            "null to take the order of the file"
            if format is None
            else f"correct timestamp_format ({format!r}), or the rows"
        )
        raise DataError(
            f"{table.source}: column {name!r} ({setting}) has no usable timestamp in {_rows(bad)}: "
            f"{_values(column, bad)}; {remedy}"
        )
    return values


def read_numbers(table: Table, name: str, *, setting: str) -> NDArray[np.float64]:
    """Reads numbers.

    Returns:
        [n] float64, finite.

    Raises:
        DataError: If the column is absent or a number is missing, not finite, or not parsable.
    """
    column = table.column(name, setting=setting)
    values, bad = parse_numbers(column)
    if bad.any():
        raise DataError(
            f"{table.source}: column {name!r} ({setting}) has no usable number in {_rows(bad)}: "
            f"{_values(column, bad)}; give each row a number, or remove it"
        )
    return values


def written_lists(text: pl.Series) -> pl.Series:
    """The parts of each cell that is a list written as text, such as ``['a', 'b']``; or null."""
    looks = text.str.contains(r"(?s)^\[.*\]$").fill_null(False)
    lists = [_written_list(cell) for cell in text.filter(looks)]
    place = (looks.cum_sum().cast(pl.Int64) - 1).set(~looks, None)
    return pl.Series([*lists, None], dtype=pl.List(pl.String)).gather(place)


def _written_list(cell: str) -> list[str] | None:
    # NumPy writes no commas, and Python joins texts that follow one another
    parted = _TEXT_AND_GAP.sub(lambda found: found[1] + (", " if found[2] else ""), cell)
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        expression = ast.parse(parted, mode="eval").body
        if isinstance(expression, ast.List):
            return [_written(part, parted) for part in expression.elts]
    return None


def _written(part: ast.expr, cell: str) -> str:
    """A text, or a number as it is written; ValueError for anything else."""
    value = ast.literal_eval(part)
    if isinstance(value, str):
        return value
    if not isinstance(value, int | float):
        raise ValueError
    return ast.get_source_segment(cell, part) or str(value)


def _lists(table: Table, column: pl.Series, setting: str) -> pl.Series:
    """Lists, or lists of lists, of text or numbers as lists of text."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    while isinstance(inner := column.dtype.inner, pl.List | pl.Array):  # type: ignore[attr-defined]
        if isinstance(inner, pl.Array):
            column = column.cast(pl.List(pl.List(inner.inner)))
        column = column.list.eval(pl.element().explode())
    texts = (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Null, pl.Date, pl.Datetime)
    if not (inner.is_numeric() or inner in texts):
        raise DataError(
            f"{table.source}: column {column.name!r} ({setting}) holds lists of {inner}, which are "
            "neither text nor numbers; write the texts that are meant"
        )
    return column.cast(pl.List(pl.String))


def _missing(table: Table, name: str, setting: str, missing: pl.Series | NDArray[np.bool_]) -> str:
    return (
        f"{table.source}: column {name!r} ({setting}) is empty in {_rows(missing)}; give each row "
        "an id, or remove it"
    )


def _rows(bad: pl.Series | NDArray[np.bool_]) -> str:
    rows = (np.flatnonzero(np.asarray(bad)) + 1).tolist()
    return f"row{'s' if len(rows) > 1 else ''} {shown(rows)}"


def _values(column: pl.Series, bad: NDArray[np.bool_]) -> str:
    return shown(column.filter(pl.Series(bad)).to_list())
