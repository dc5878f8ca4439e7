"""Table files (CSV, TSV, Parquet, JSONL, RecBole; plain or gzip) to a Table of named columns.

Ids must come out as they went in, so text formats are read as text, never guessed at: '007' stays
'007'. What is found wrong with a file is reported here, with the file's name.
"""

import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from mmkd.data.errors import DataError, did_you_mean
from mmkd.data.readers.delimited import parse_delimited
from mmkd.data.readers.jsonl import parse_jsonl
from mmkd.data.readers.recbole import parse_recbole

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
