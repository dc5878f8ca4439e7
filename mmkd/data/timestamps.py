"""Timestamps: numbers, ISO dates and polars dates to float64, one unit throughout a log."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray


def seconds(value: float | str) -> float:
    """Turns one timestamp into a number.

    Args:
        value: A number (any unit, returned as it is), a string holding one, or an ISO 8601 date,
            read as UTC where it names no zone.

    Returns:
        The number, or seconds since 1970-01-01 UTC; always finite.

    Raises:
        ValueError: If it is none of these.
    """
    try:
        number = float(value)
    except ValueError:
        number = _iso_seconds(str(value).strip())
    if not np.isfinite(number):
        raise ValueError(f"{value!r} is not a timestamp")
    return number


def parse_timestamps(column: pl.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Turns a column of timestamps into numbers.

    A text column holds either numbers or ISO dates, not both: one odd value among the other kind
    does not parse.

    Args:
        column: [E] numbers, text, dates or datetimes.

    Returns:
        [E] float64 and, True where the value is missing, not finite, or did not parse, [E] bool.
    """
    if column.dtype in (pl.Date, pl.Datetime):
        return _finite(column.cast(pl.Datetime("us")).dt.epoch("us") / 1e6)
    if column.dtype == pl.String:
        return _finite(_parse_text(column.str.strip_chars()))
    return parse_numbers(column)


def parse_numbers(column: pl.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Turns a column of numbers, or of text that holds numbers, into float64.

    Args:
        column: [E] of any type; a type that is neither gives no number at all.

    Returns:
        [E] float64 and, True where the value is missing, not finite, or no number, [E] bool.
    """
    if column.dtype == pl.String:
        return _finite(column.str.strip_chars().cast(pl.Float64, strict=False))
    if column.dtype.is_numeric():
        return _finite(column.cast(pl.Float64, strict=False))
    return _finite(pl.Series([None] * len(column), dtype=pl.Float64))


def _finite(column: pl.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = column.fill_null(float("nan")).to_numpy().astype(np.float64)
    return values, ~np.isfinite(values)


def _parse_text(column: pl.Series) -> pl.Series:
    numbers = column.cast(pl.Float64, strict=False)
    given = column.drop_nulls()
    if not len(given) or numbers.is_not_null().sum() * 2 >= len(given):  # mostly numbers
        return numbers
    unique = given.unique()
    parsed = pl.Series([_iso_seconds_or_none(text) for text in unique], dtype=pl.Float64)
    return column.replace_strict(unique, parsed, default=None, return_dtype=pl.Float64)


def _iso_seconds_or_none(text: str) -> float | None:
    try:
        return _iso_seconds(text)
    except ValueError:
        return None


def _iso_seconds(text: str) -> float:
    date = datetime.fromisoformat(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
