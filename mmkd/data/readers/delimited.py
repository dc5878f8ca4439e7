"""Delimited text (CSV, TSV): bytes to a frame of text columns, missing cells null."""

import csv
import io
from collections.abc import Iterator

import polars as pl

from mmkd.data.errors import DataError, shown
from mmkd.data.items import repeated


def parse_delimited(
    data: bytes, source: str, *, separator: str, quote: str | None = '"'
) -> pl.DataFrame:
    """Reads delimited text with a header line; every column stays text.

    Args:
        data: The file's content, UTF-8 with or without a byte order mark.
        source: The file, for messages.
        separator: One character.
        quote: Quote character; None where the format has none.

    Returns:
        The columns; an empty cell is null, and so are the cells a short row lacks.

    Raises:
        DataError: If a column name is repeated or blank, a row is too long, or the text is not
            UTF-8.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        header = next(_rows(data, separator, quote), [])
    except csv.Error as error:
        raise DataError(f"{source}: the header line is not text cells ({error})") from error
    twice = repeated(header)
    if twice:
        raise DataError(
            f"{source}: column {shown(twice)} occurs more than once in the header; rename or "
            "remove one"
        )
    try:
        return pl.read_csv(
            io.BytesIO(data),
            separator=separator,
            quote_char=quote,
            infer_schema=False,
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{source}: {_fault(data, separator, quote, error)}") from error


def _rows(data: bytes, separator: str, quote: str | None) -> Iterator[list[str]]:
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="replace", newline="")
    if quote is None:
        return csv.reader(text, delimiter=separator, quoting=csv.QUOTE_NONE)
    return csv.reader(text, delimiter=separator, quotechar=quote)


def _fault(data: bytes, separator: str, quote: str | None, error: Exception) -> str:
    """Reads a refused file once more, slowly, to name the first line at fault."""
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as wrong:
        line = data.count(b"\n", 0, wrong.start) + 1
        return f"line {line} is not UTF-8 text; save the file as UTF-8"
    rows = enumerate(_rows(data, separator, quote), start=1)
    try:
        width = len(next(rows)[1])
        for number, row in rows:
            if len(row) > width:
                return (
                    f"record {number} (the header is 1) has {len(row)} cells, the header {width}: "
                    f"{shown(row)}; quote cells that contain {separator!r}"
                )
    except csv.Error as wrong:
        return f"{wrong}; check its quotes"
    first_line = str(error).splitlines()[0]
    return f"not readable as text separated by {separator!r} ({first_line}); check its quotes"
