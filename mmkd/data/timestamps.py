"""Timestamps: numbers, ISO dates and polars dates to float64, one unit throughout a log."""

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.data.ids import NUMBERS, rounds_from

Unit = Literal["s", "ms", "us", "ns"]
# what fromisoformat would cut off
_FINER = re.compile(r"\.\d{6}\d*[1-9]")
_TOLD_APART: Final = 2**51
PER_SECOND: Final[dict[str, float]] = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


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


def whole_numbers(parts: Iterable[pl.Series]) -> pl.Series | None:
    """A column of text by its parts as whole numbers, where it holds nothing else; or None."""
    whole = []
    for text in parts:
        whole.append(text.cast(pl.String).str.strip_chars().cast(pl.Int64, strict=False))
        if whole[-1].null_count() > text.null_count():
            return None
    return pl.concat(whole) if whole else None


def parse_timestamps(
    column: pl.Series, *, unit: Unit | None = None, format: str | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Turns a column of timestamps into numbers.

    A text column holds either numbers or ISO dates, not both: one odd value among the other kind
    does not parse.

    Args:
        column: [E] numbers, text, dates or datetimes.
        unit: What numbers count, so that they become seconds; None takes them as they are.
        format: How text is a date, in strptime's codes, such as ``%d/%m/%Y %H:%M``; UTC where it
            names no zone. None takes numbers and ISO dates.

    Returns:
        [E] float64 and, True where the value is missing, not finite, or did not parse, [E] bool.
    """
    column = _as_written(column)
    if format is not None and column.dtype not in (pl.Date, pl.Datetime):
        text = column.cast(pl.String, strict=False).str.strip_chars()
        return _finite(_parse_format(text, format))
    if column.dtype in (pl.Date, pl.Datetime):
        if _has_nanoseconds(column):
            return _finite(column.dt.epoch("ns") / 1e9)
        return _finite(column.cast(pl.Datetime("us")).dt.epoch("us") / 1e6)
    scale = PER_SECOND[unit] if unit else 1.0
    if column.dtype == pl.String:
        return _finite(_parse_text(column.str.strip_chars(), scale))
    values, bad = parse_numbers(column)
    return values if scale == 1 else values / scale, bad


def why_tied(column: pl.Series, values: NDArray[np.float64]) -> str | None:
    """Why different timestamps of a column may be one number, and the remedy; or None.

    Args:
        column: [E] as `parse_timestamps` takes it.
        values: [E] what it makes of them.
    """
    column = _as_written(column)
    if column.dtype == pl.String:
        column = _as_numbers(column.str.strip_chars())
    if column.dtype.is_float():
        finite = column.filter(column.is_finite())
        if not (finite.abs() >= rounds_from(column)).any():
            return None
        return (
            f"holds {column.dtype} with times from {rounds_from(column):,} on, which it rounds, so "
            "that different ones tie; write them as whole numbers or dates"
        )
    if _has_nanoseconds(column):
        column = column.dt.epoch("ns")
    if column.dtype.is_integer() and _are_small(column):
        return None
    if not column.dtype.is_integer() or column.n_unique() == len(np.unique(values)):
        return None
    return (
        f"holds times that float64 cannot tell apart, such as {column.max()!s} and its neighbours; "
        "write them in microseconds"
    )


def _are_small(whole: pl.Series) -> bool:
    """Whether float64 tells whole numbers apart, and parts of a second made of them."""
    least: Any = whole.min()
    most: Any = whole.max()
    return least is None or bool(-_TOLD_APART < least and most < _TOLD_APART)


def _has_nanoseconds(column: pl.Series) -> bool:
    """Whether dates are finer than a microsecond."""
    fine = isinstance(column.dtype, pl.Datetime) and column.dtype.time_unit == "ns"
    return fine and bool((column.dt.epoch("ns") % 1000 != 0).any())


def parse_numbers(column: pl.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Turns a column of numbers, or of text that holds numbers, into float64.

    Args:
        column: [E] of any type; a type that is neither gives no number at all.

    Returns:
        [E] float64 and, True where the value is missing, not finite, or no number, [E] bool.
    """
    column = _as_written(column)
    if column.dtype == pl.String:
        return _finite(column.str.strip_chars().cast(pl.Float64, strict=False))
    if column.dtype.is_numeric():
        return _finite(column.cast(pl.Float64, strict=False))
    return _finite(pl.Series([None] * len(column), dtype=pl.Float64))


def _as_written(column: pl.Series) -> pl.Series:
    """Numbers that no one type holds, as text; any other column as it is."""
    return column.struct.field("number") if column.dtype == NUMBERS else column


def _finite(column: pl.Series) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = column.fill_null(float("nan")).to_numpy().astype(np.float64, copy=False)
    return values, ~np.isfinite(values)


def _parse_text(column: pl.Series, scale: float) -> pl.Series:
    numbers = _as_numbers(column)
    given = column.drop_nulls()
    if not len(given) or numbers.is_not_null().sum() * 2 >= len(given):  # mostly numbers
        return numbers.cast(pl.Float64) if scale == 1 else numbers.cast(pl.Float64) / scale
    return _by_value(column, _iso_seconds)


def _as_numbers(text: pl.Series) -> pl.Series:
    """Whole numbers where all are, so that they stay exact; null where there is no number."""
    whole = text.cast(pl.Int64, strict=False)
    return text.cast(pl.Float64, strict=False) if whole.null_count() > text.null_count() else whole


def _parse_format(column: pl.Series, format: str) -> pl.Series:
    return _by_value(column, lambda text: _utc(datetime.strptime(text, format)))


def _by_value(column: pl.Series, read: Callable[[str], float]) -> pl.Series:
    """Reads each different text once; null where it does not parse."""

    def read_or_none(text: str) -> float | None:
        try:
            return read(text)
        except (ValueError, OverflowError):
            return None

    unique = column.drop_nulls().unique()
    parsed = pl.Series([read_or_none(text) for text in unique], dtype=pl.Float64)
    return column.replace_strict(unique, parsed, default=None, return_dtype=pl.Float64)


def _iso_seconds(text: str) -> float:
    if _FINER.search(text):
        raise ValueError(f"{text!r} is finer than a microsecond")
    return _utc(datetime.fromisoformat(text))


def _utc(date: datetime) -> float:
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
