"""A Table's columns to ids, text and numbers, with the offending rows named where they will not go.

Rows are counted from 1, the header not counted.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.data.readers.tables import Table
from mmkd.data.timestamps import parse_moments, parse_numbers
from mmkd.errors import DataError, shown


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
    ids = _as_text(column)
    if ids is None:
        raise DataError(
            f"{table.source}: column {name!r} ({setting}) holds {column.dtype}, which cannot be "
            "ids; use text or whole numbers"
        )
    missing = ids.is_null() | (ids.str.strip_chars() == "")
    if missing.any():
        raise DataError(
            f"{table.source}: column {name!r} ({setting}) is empty in {_rows(missing)}; give each "
            "row an id, or remove it"
        )
    return ids


def read_text(table: Table, name: str, *, setting: str) -> list[str | None]:
    """Reads cells as text; the parts of a list are joined by commas.

    Returns:
        [n] stripped text; None where it is missing or blank.

    Raises:
        DataError: If the column is absent or holds neither text, numbers nor lists of them.
    """
    column = table.column(name, setting=setting)
    if isinstance(column.dtype, pl.List):
        column = column.cast(pl.List(pl.String), strict=False).list.drop_nulls().list.join(", ")
    text = _as_text(column, floats=True)
    if text is None:
        raise DataError(
            f"{table.source}: column {name!r} ({setting}) holds {column.dtype}, which is not text"
        )
    return [None if not cell else cell for cell in text.str.strip_chars()]


def read_lists(table: Table, name: str, *, setting: str, separator: str) -> list[tuple[str, ...]]:
    """Reads cells as lists of labels, each label once, blank ones dropped.

    Args:
        table: The table.
        name: The column; a column of lists is taken as it is.
        setting: The setting that named it, for messages.
        separator: What parts the labels of a text cell, unless the file's format says it.

    Returns:
        [n] labels, possibly none.

    Raises:
        DataError: If the column is absent or holds neither text nor lists.
    """
    column = table.column(name, setting=setting)
    if isinstance(column.dtype, pl.List):
        cells = column.cast(pl.List(pl.String), strict=False).to_list()
    else:
        used = " " if name in table.space_separated else separator
        if not used:
            raise DataError(f"{table.source}: {setting}: the separator is empty; use '|' or ' '")
        cells = [cell and cell.split(used) for cell in read_text(table, name, setting=setting)]
    return [
        tuple(dict.fromkeys(label.strip() for label in cell if label and label.strip()))
        if cell
        else ()
        for cell in cells
    ]


def read_timestamps(table: Table, name: str, *, setting: str) -> NDArray[np.float64]:
    """Reads moments: numbers, ISO dates (to seconds, UTC where no zone is named), or date columns.

    Returns:
        [n] float64, finite.

    Raises:
        DataError: If the column is absent or a moment is missing, not finite, or not parsable.
    """
    column = table.column(name, setting=setting)
    values, bad = parse_moments(column)
    if bad.any():
        raise DataError(
            f"{table.source}: column {name!r} ({setting}) has no usable moment in {_rows(bad)}: "
            f"{_values(column, bad)}; use numbers or ISO dates such as 2024-03-01T12:00:00, one "
            "kind throughout, or set timestamp to null to take the order of the file"
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


def _as_text(column: pl.Series, *, floats: bool = False) -> pl.Series | None:
    """Text, categories, and whole numbers as text; None for a type that is none of these."""
    dtype = column.dtype
    if dtype.is_float():
        # A whole-number column with gaps often arrives as floats: 1.0 is the id 1.
        values = column.fill_nan(None)
        whole = values.cast(pl.Int64, strict=False)
        if ((whole.cast(dtype) == values) | values.is_null()).all():
            return whole.cast(pl.String)
        return values.cast(pl.String) if floats else None
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null) or dtype.is_integer():
        return column.cast(pl.String)
    printable = floats and (dtype.is_decimal() or dtype in (pl.Boolean, pl.Date, pl.Datetime))
    return column.cast(pl.String) if printable else None


def _rows(bad: pl.Series | NDArray[np.bool_]) -> str:
    rows = (np.flatnonzero(np.asarray(bad)) + 1).tolist()
    return f"row{'s' if len(rows) > 1 else ''} {shown(rows)}"


def _values(column: pl.Series, bad: NDArray[np.bool_]) -> str:
    return shown(column.filter(pl.Series(bad)).to_list())
