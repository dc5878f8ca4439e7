"""Delimited text (CSV, TSV) to columns of text, as Python's ``csv`` reads it with ``strict=True``.

It is read some lines at a time: blocks without quotes are split by polars, which gives the same
cells at many times the speed; from the first block with quotes on, ``csv`` itself reads. Records
are counted from 1, the header is the first; blank lines are none. A record that is no record is
refused with its number and, where a quote is at fault, its cell's.
"""

import codecs
import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl

from mmkd.data.ids import repeated
from mmkd.data.readers.packing import opened
from mmkd.errors import DataError, shown

_ROWS = 50_000  # bounds the Python strings of one part
_BYTES = 1 << 24  # bounds a block of lines


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


def delimited_parts(content: Path | bytes, source: str, dialect: Dialect) -> Iterator[pl.DataFrame]:
    """Delimited text with a header line: columns of text, null where a cell is empty or lacking.

    Args:
        content: The file or its bytes.
        source: The file's name, for messages.
        dialect: How cells are parted.

    Returns:
        First the columns without rows, then their rows, some at a time.

    Raises:
        DataError: The text is no UTF-8, a quote is misplaced, a record has more cells than the
            header, or the header names a column twice.
    """
    try:
        with _records(content, dialect) as records:
            header = next(records, [])
        refuse_repeated(header, source)
        yield pl.DataFrame(schema=dict.fromkeys(header, pl.String))
        with opened(content) as file:
            yield from _parts(file, header, dialect)
    except (csv.Error, UnicodeDecodeError, pl.exceptions.PolarsError, _TooWideError) as error:
        raise DataError(f"{source}: {_fault(content, dialect, error)}") from error


def refuse_repeated(header: list[str], source: str) -> None:
    """Raise DataError where two columns have one name."""
    if twice := repeated(pl.Series(header, dtype=pl.String)):
        raise DataError(
            f"{source}: column {shown(twice)} occurs more than once in the header; rename or "
            "remove one"
        )


class _TooWideError(Exception):
    """A record has more cells than the header."""


def _parts(file: BinaryIO, header: list[str], dialect: Dialect) -> Iterator[pl.DataFrame]:
    """The rows: blocks of lines as long as there is nothing in them but to be split, then all."""
    head = b""
    while read := file.read(_BYTES):
        block = head + read + file.readline()
        if not _is_plain(block, dialect):
            with _records(_Joined(block, file), dialect) as records:
                next(records, [])
                yield from _frames(header, records)
            return
        yield pl.read_csv(block, separator=dialect.separator, quote_char=None, infer_schema=False)
        head = head or block[: block.find(b"\n") + 1]


def _is_plain(block: bytes, dialect: Dialect) -> bool:
    """Whether lines hold nothing that needs more than to be split."""
    marks = [dialect.quote, dialect.escape]
    if any(mark is not None and mark.encode() in block for mark in marks):
        return False
    # blank lines are rows to polars
    if (
        block.removeprefix(codecs.BOM_UTF8).startswith((b"\n", b"\r\n"))
        or b"\n\n" in block
        or b"\n\r\n" in block
    ):
        return False
    # \r ends no line to it, and of a last line without an end it leaves out an empty cell too many
    ends = block.count(b"\r") == block.count(b"\r\n")
    return ends and not block.endswith(dialect.separator.encode())


class _Joined(io.RawIOBase):
    """Bytes, and what is left of a file."""

    def __init__(self, first: bytes, file: BinaryIO) -> None:
        self._first, self._file = memoryview(first), file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._first[: len(buffer)] or self._file.read(len(buffer))
        self._first = self._first[len(part) :]
        buffer[: len(part)] = part
        return len(part)


@contextmanager
def _records(content: Path | bytes | _Joined, dialect: Dialect) -> Iterator[Iterator[list[str]]]:
    with _text(content) as lines:
        yield filter(None, dialect.reader(lines))


@contextmanager
def _text(content: Path | bytes | _Joined) -> Iterator[Iterator[str]]:
    """The lines, of any ends, to be read by the csv module."""
    before = csv.field_size_limit(sys.maxsize)  # a long description is no fault
    try:
        if isinstance(content, _Joined):
            yield io.TextIOWrapper(io.BufferedReader(content), encoding="utf-8-sig", newline="")
        else:
            with opened(content) as file:
                yield io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    finally:
        csv.field_size_limit(before)


def _frames(header: list[str], records: Iterator[list[str]]) -> Iterator[pl.DataFrame]:
    schema = dict.fromkeys(header, pl.String)
    while rows := list(islice(records, _ROWS)):
        if max(map(len, rows)) > len(header):
            raise _TooWideError
        cells = zip_longest(*rows)  # by column; None where a record is too short
        columns = dict(zip(header, ([cell or None for cell in one] for one in cells), strict=False))
        lacking = {name: [None] * len(rows) for name in header[len(columns) :]}
        yield pl.DataFrame(columns | lacking, schema=schema)


# ---- what is told of a refused file, which is read once more, slowly


def _fault(content: Path | bytes, dialect: Dialect, error: Exception) -> str:
    with opened(content) as file:
        for line, data in enumerate(file, start=1):
            try:
                data.decode()
            except UnicodeDecodeError:
                return f"line {line} is not UTF-8 text; save the file as UTF-8"
    number, width = 0, 0
    since: list[str] = []  # the lines of the record that is being read
    with _text(content) as lines:
        try:
            for record in dialect.reader(_kept(lines, since)):
                since.clear()
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
            return f"record {number + 1} (the header is 1), {_misquoted(since, lines, dialect)}"
    first_line = next(iter(str(error).splitlines()), "")
    return (
        f"not readable as text separated by {dialect.separator!r} ({first_line}); check its quotes"
    )


def _kept(lines: Iterator[str], since: list[str]) -> Iterator[str]:
    for line in lines:
        since.append(line)
        yield line


def _misquoted(lines: list[str], others: Iterator[str], dialect: Dialect) -> str:
    """Which cell of a record's lines, which others follow, has a misplaced quote, and how."""
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
    if escape is None and any("\\" + quote in line for line in chain(lines, others)):
        remedy += f", or set escape to '\\' where the file writes \\{quote}"
    if state == "quoted":
        return f"cell {cell}, {begins}: its quote is never closed; {remedy}"
    return (
        f"cell {cell}, {begins}: {text[place : place + 1]!r} follows the closing quote, wanted "
        f"{dialect.separator!r} or the end of the line; {remedy}"
    )
