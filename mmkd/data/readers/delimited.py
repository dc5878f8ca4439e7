"""Delimited text (CSV, TSV) to columns of text, as Python's ``csv`` reads it with ``strict=True``.

Text without quotes is split by polars, which gives the same cells at many times the speed. Records
are counted from 1, the header is the first; blank lines are none. A record that is no record is
refused with its number and, where a quote is at fault, its cell's.
"""

import csv
import io
import mmap
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from mmkd.data.ids import repeated
from mmkd.errors import DataError, shown

# what polars would read in another way: blank lines are rows to it, and \r ends no line
_UNLIKE = re.compile(rb"\A\r?\n|\n\r?\n|\r(?!\n)")
_ROWS = 50_000  # bounds the Python strings of one part


@dataclass(frozen=True)
class Dialect:
    r"""How cells are parted.

    Attributes:
        separator: Between two cells.
        quote: Around a cell; twice inside one for itself. None: quotes are ordinary characters.
        escape: Before a character that is meant as it is, such as ``\"``; None is no such sign.
    """

    separator: str
    quote: str | None = '"'
    escape: str | None = None

    def reader(self, lines: Iterator[str]) -> Any:
        """Python's strict reader of these cells."""
        if self.quote is None:
            return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(
            lines,
            delimiter=self.separator,
            quotechar=self.quote,
            escapechar=self.escape,
            strict=True,
        )


def parse_delimited(content: Path | bytes, source: str, dialect: Dialect) -> pl.DataFrame:
    """Delimited text with a header line: columns of text, null where a cell is empty or lacking.

    Args:
        content: The file or its bytes.
        source: The file's name, for messages.
        dialect: How cells are parted.

    Raises:
        DataError: The text is no UTF-8, a quote is misplaced, a record has more cells than the
            header, or the header names a column twice.
    """
    try:
        with _records(content, dialect) as records:
            header = next(records, [])
            refuse_repeated(header, source)
            if not _is_plain(content, dialect):
                return _frame(header, records)
        return pl.read_csv(
            content, separator=dialect.separator, quote_char=None, infer_schema=False, glob=False
        )
    except (csv.Error, UnicodeDecodeError, pl.exceptions.PolarsError, _TooWideError) as error:
        raise DataError(f"{source}: {_fault(content, dialect, error)}") from error


def refuse_repeated(header: list[str], source: str) -> None:
    """Raise DataError where two columns have one name."""
    if twice := repeated(pl.Series(header, dtype=pl.String)):
        raise DataError(
            f"{source}: column {shown(twice)} occurs more than once in the header; rename or "
            "remove one"
        )


@contextmanager
def opened(content: Path | bytes) -> Iterator[BinaryIO]:
    """The file, or the bytes as one."""
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        yield file


class _TooWideError(Exception):
    """A record has more cells than the header."""


def _is_plain(content: Path | bytes, dialect: Dialect) -> bool:
    """Whether the bytes hold nothing that needs more than to be split."""
    with opened(content) as file:
        data: bytes | mmap.mmap = (
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if isinstance(content, Path)
            else content
        )
        marks = [dialect.quote, dialect.escape]
        if any(mark is not None and data.find(mark.encode()) >= 0 for mark in marks):
            return False
        # of a last line without an end polars leaves out an empty cell too many
        return data[-1:] != dialect.separator.encode() and _UNLIKE.search(data) is None


@contextmanager
def _records(content: Path | bytes, dialect: Dialect) -> Iterator[Iterator[list[str]]]:
    before = csv.field_size_limit(sys.maxsize)  # a long description is no fault
    try:
        with opened(content) as file:
            text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
            yield filter(None, dialect.reader(text))
    finally:
        csv.field_size_limit(before)


def _frame(header: list[str], records: Iterator[list[str]]) -> pl.DataFrame:
    schema = dict.fromkeys(header, pl.String)
    parts = [pl.DataFrame(schema=schema)]
    while rows := list(islice(records, _ROWS)):
        if max(map(len, rows)) > len(header):
            raise _TooWideError
        cells = zip_longest(*rows)  # by column; None where a record is too short
        columns = dict(zip(header, ([cell or None for cell in one] for one in cells), strict=False))
        lacking = {name: [None] * len(rows) for name in header[len(columns) :]}
        parts.append(pl.DataFrame(columns | lacking, schema=schema))
    return pl.concat(parts)


# ---- what is told of a refused file, which is read once more, slowly


def _fault(content: Path | bytes, dialect: Dialect, error: Exception) -> str:
    with opened(content) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        line = data.count(b"\n", 0, wrong.start) + 1
        return f"line {line} is not UTF-8 text; save the file as UTF-8"
    lines = list(io.StringIO(text, newline=""))
    number, width, good = 0, 0, 0
    with _records(data, dialect):  # long cells are no fault here either
        reader = dialect.reader(iter(lines))
        try:
            for record in reader:
                good = reader.line_num
                if not record:
                    continue
                number += 1
                width = width or len(record)
                if len(record) > width:
                    return (
                        f"record {number} (the header is 1) has {len(record)} cells, the header "
                        f"{width}: {shown(record)}; quote cells that contain {dialect.separator!r}"
                    )
        except csv.Error:
            return f"record {number + 1} (the header is 1), {_misquoted(lines[good:], dialect)}"
    first_line = next(iter(str(error).splitlines()), "")
    return (
        f"not readable as text separated by {dialect.separator!r} ({first_line}); check its quotes"
    )


def _misquoted(lines: list[str], dialect: Dialect) -> str:
    """Which cell of the record that these lines begin with has a misplaced quote, and how."""
    quote, escape = dialect.quote or "", dialect.escape
    text = "".join(lines).lstrip("\r\n")
    cell, start, place, state = 1, 0, 0, "start"
    while place < len(text):
        sign = text[place]
        if sign == escape and state != "closed":
            place += 1
            state = "plain" if state == "start" else state
        elif state == "quoted":
            state = "closed" if sign == quote else state
        elif sign == quote and state in ("start", "closed"):
            state = "quoted"  # it opens a cell, or is the second of two
        elif sign == dialect.separator:
            cell, start, state = cell + 1, place + 1, "start"
        elif state == "closed":
            break
        else:
            state = "plain"
        place += 1
    begins = shown([text[start : min(place + 1, start + 40)]])
    remedy = f"write {quote * 2} for a quote inside a cell"
    if escape is None and "\\" + quote in text:
        remedy += f", or set escape to '\\' where the file writes \\{quote}"
    if state == "quoted":
        return f"cell {cell}, {begins}: its quote is never closed; {remedy}"
    return (
        f"cell {cell}, {begins}: {text[place : place + 1]!r} follows the closing quote, wanted "
        f"{dialect.separator!r} or the end of the line; {remedy}"
    )
