"""Delimited text (CSV, TSV): bytes to a frame of text columns, missing cells null."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from mmkd.data.items import repeated
from mmkd.errors import DataError, did_you_mean, shown


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


def parse_jsonl(data: bytes, source: str) -> pl.DataFrame:
    """Reads one JSON object a line; a key that an object lacks is a missing cell.

    Args:
        data: The file's content, UTF-8.
        source: The file, for messages.

    Returns:
        The columns, with types found from all lines; a column of numbers and text becomes text.

    Raises:
        DataError: If a line is not a JSON object, or lines disagree about a column's type.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        return pl.read_ndjson(io.BytesIO(data), infer_schema_length=None)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{source}: {_jsonl_fault(data, error)}") from error


def _jsonl_fault(data: bytes, error: Exception) -> str:
    """Reads a refused file once more, slowly, to name the first line at fault."""
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as wrong:
            return f"line {number} is not JSON ({wrong}); write one object a line"
        if not isinstance(value, dict):
            return f"line {number} is a JSON {type(value).__name__}; write one object a line"
    return f"the lines do not form a table ({error}); give each key values of one type"


_TYPES = ("token", "token_seq", "float", "float_seq")


def parse_recbole(
    data: bytes, source: str, *, separator: str = "\t"
) -> tuple[pl.DataFrame, frozenset[str]]:
    """Reads an atomic file.

    Args:
        data: The file's content, UTF-8.
        source: The file, for messages.
        separator: One character between columns; the format has no quotes.

    Returns:
        The columns, all text, and the names of the ``_seq`` columns, whose cells are lists
        separated by spaces.

    Raises:
        DataError: If a header cell is not ``name:type`` with one of the four types, or two columns
            have one name.
    """
    frame = parse_delimited(data, source, separator=separator, quote=None)
    split = {header: header.rpartition(":") for header in frame.columns}
    wrong = [header for header, (name, _, kind) in split.items() if not name or kind not in _TYPES]
    if wrong:
        raise DataError(
            f"{source}: header {shown(wrong)} is not name:type with a type of {', '.join(_TYPES)}; "
            "correct the header, or set format to csv or tsv"
        )
    names = [name for name, _, _ in split.values()]
    if repeated(names):
        raise DataError(
            f"{source}: column {shown(repeated(names))} occurs more than once in the header; "
            "rename or remove one"
        )
    lists = frozenset(name for name, _, kind in split.values() if kind.endswith("_seq"))
    return frame.rename({header: name for header, (name, _, _) in split.items()}), lists


Format = Literal["auto", "csv", "tsv", "parquet", "jsonl", "recbole"]
_BY_SUFFIX = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".inter": "recbole",
    ".item": "recbole",
}
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Table:
    """A file's columns.

    Attributes:
        frame: The columns; text formats hold only text, with missing cells null.
        source: The file, for messages.
        space_separated: Columns that the format itself declares to be lists separated by spaces.
        hint: What to try when a column is missing, or the empty string.
    """

    frame: pl.DataFrame
    source: str
    space_separated: frozenset[str] = frozenset()
    hint: str = ""

    def __len__(self) -> int:
        """Number of rows."""
        return self.frame.height

    def column(self, name: str, *, setting: str) -> pl.Series:
        """Looks up a column.

        Args:
            name: The column's name.
            setting: The setting that named it, for the message.

        Returns:
            The column.

        Raises:
            DataError: If the file has no such column; close matches are named.
        """
        if name not in self.frame.columns:
            raise DataError(
                f"{self.source}: no column {name!r} ({setting}); it has "
                f"{', '.join(map(repr, self.frame.columns))}"
                f"{did_you_mean(name, self.frame.columns)}{self.hint}"
            )
        return self.frame[name]


def read_table(
    path: str, *, root: Path, format: Format = "auto", separator: str | None = None
) -> Table:
    """Reads a table file.

    Args:
        path: The file, relative to `root` or absolute.
        root: The data folder.
        format: ``auto`` goes by the file's suffix, before any ``.gz``.
        separator: Column separator of csv, tsv and recbole, where it is not the usual one.

    Returns:
        The table, with at least one row.

    Raises:
        DataError: If the file is missing, empty, damaged, or not of that format, or if it has two
            columns of one name.
    """
    file = root / path
    kind = _kind(file, format)
    data = _read_bytes(file)
    if not data.strip():
        raise DataError(f"{file}: the file is empty; give a {kind} file with a row for each record")
    table = _parse(data, kind, str(file), separator)
    if not len(table):
        raise DataError(f"{file}: the file has columns but no rows; give at least one row")
    return table


def _kind(file: Path, format: Format) -> str:
    if format != "auto":
        if format not in _BY_SUFFIX.values():
            kinds = ", ".join(dict.fromkeys(_BY_SUFFIX.values()))
            raise DataError(f"{file}: unknown format {format!r}; use auto, {kinds}")
        return format
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in (".gz", ".gzip"):
        suffixes.pop()
    kind = _BY_SUFFIX.get(suffixes[-1]) if suffixes else None
    if kind is None:
        raise DataError(
            f"{file}: cannot tell the format from the name; set format to one of "
            f"{', '.join(dict.fromkeys(_BY_SUFFIX.values()))}"
        )
    return kind


def _read_bytes(file: Path) -> bytes:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{file}: no such file{_neighbours(file)}; check root and path") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); give a file") from error
    if not data.startswith(_GZIP_MAGIC):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: damaged gzip data ({error}); fetch the file again") from error


def _neighbours(file: Path) -> str:
    if not file.parent.is_dir():
        return f" (nor is there a folder {file.parent})"
    return did_you_mean(file.name, sorted(entry.name for entry in file.parent.iterdir()))


def _parse(data: bytes, kind: str, source: str, separator: str | None) -> Table:
    if kind in ("parquet", "jsonl"):
        if separator is not None:
            raise DataError(f"{source}: a {kind} file has no separator; leave it unset")
        return Table(
            _parse_parquet(data, source) if kind == "parquet" else parse_jsonl(data, source), source
        )
    if separator is not None and len(separator.encode()) != 1:
        raise DataError(
            f"{source}: separator {separator!r} is not one ASCII character; convert the file, or "
            "use one such as ',' or ';'"
        )
    if kind == "recbole":
        frame, lists = parse_recbole(data, source, separator=separator or "\t")
        return Table(frame, source, space_separated=lists)
    used = separator or {"csv": ",", "tsv": "\t"}[kind]
    frame = parse_delimited(data, source, separator=used)
    return Table(frame, source, hint=_separator_hint(frame))


def _parse_parquet(data: bytes, source: str) -> pl.DataFrame:
    try:
        return pl.read_parquet(io.BytesIO(data))
    except pl.exceptions.DuplicateError as error:
        raise DataError(f"{source}: {error}; rename one of the two columns") from None
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{source}: not a readable Parquet file ({error})") from error


def _separator_hint(frame: pl.DataFrame) -> str:
    """A one-column file whose header holds another separator was read with the wrong one."""
    if frame.width == 1:
        for other in (";", "\t", "|", ","):
            if other in frame.columns[0]:
                return f"; the header looks separated by {other!r}: set separator to that"
    return ""
