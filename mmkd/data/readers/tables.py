"""Tables (CSV, TSV, Parquet, JSON lines, RecBole's atomic files; packed or not; frames) to columns.

From a file's name, or a polars, pandas or Arrow frame, to a Table. Text formats give text, with
missing cells null: no type is guessed, as the id 007 is not 7. A file that cannot be read is
refused with the line at fault.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import polars as pl

from mmkd.column_files import ParquetColumns, read_any_parquet
from mmkd.data.ids import CodedIds, why_no_ids
from mmkd.data.readers.delimited import Dialect, delimited_parts, refuse_repeated
from mmkd.data.readers.json_lines import json_line_parts
from mmkd.data.readers.packing import SUFFIXES, opened, packing
from mmkd.data.timestamps import whole_numbers
from mmkd.errors import DataError, did_you_mean, outside, refuse, shown

Format = Literal["auto", "csv", "tsv", "parquet", "jsonl", "recbole", "sequences"]
_BY_SUFFIX = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".inter": "recbole",
    ".item": "recbole",
    ".sequences": "sequences",
}
_KINDS = ", ".join(kind for kind in dict.fromkeys(_BY_SUFFIX.values()) if kind != "sequences")
_SEPARATORS = {"csv": ",", "tsv": "\t", "recbole": "\t"}
_RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")
_REMEDY = "correct it, or fetch it again"


class ArrowStream(Protocol):
    """What pandas, pyarrow, polars and others give each other a table by."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """The table as a PyCapsule of Arrow's C stream."""
        ...


Source: TypeAlias = str | Path | pl.DataFrame | pl.LazyFrame | ArrowStream


@dataclass(frozen=True)
class Table:
    """A file's or a frame's columns.

    Attributes:
        frame: The columns; text formats hold only text, with missing cells null. Of a file that
            is read by columns, all of them without rows.
        source: The file, or what the frame is, for messages.
        space_separated: Columns that the format itself declares to be lists separated by spaces.
        hint: What to try when a column is missing, or the empty string.
        is_file: Whether ``source`` is a file's path.
        parquet: The file, where it is read by columns, each when it is asked for; of a text file
            those that are wanted, packed in memory.
    """

    frame: pl.DataFrame
    source: str
    space_separated: frozenset[str] = frozenset()
    hint: str = ""
    is_file: bool = True
    parquet: ParquetColumns | None = None
    _read: dict[str, CodedIds] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        """Number of rows."""
        return self.frame.height if self.parquet is None else len(self.parquet)

    def column(self, name: str, *, setting: str, whole: bool = False) -> pl.Series:
        """Looks up a column.

        Args:
            name: The column's name.
            setting: The setting that named it, for the message.
            whole: Of a file that is read by columns give text as whole numbers where it holds
                nothing else; it then never is in memory as texts.

        Returns:
            The column.

        Raises:
            DataError: If the file has no such column; close matches are named.
        """
        self.require(name, setting=setting)
        if self.parquet is None:
            return self.frame[name]
        with self._readable():
            if whole and self.parquet.is_text(name):
                if (numbers := whole_numbers(self.parquet.parts(name))) is not None:
                    return numbers
            return self.parquet.frame(name)[name]

    def coded(self, name: str, *, setting: str) -> CodedIds | str:
        """A column of ids, as `column` finds it; or why it can be none.

        A text column of a file that is read by columns never is in memory as texts.
        """
        if name in self._read:
            return self._read[name]
        self.require(name, setting=setting)
        if self.parquet is not None and self.parquet.is_text(name):
            with self._readable():
                found = CodedIds.of_numbers(*self.parquet.coded(name))
        else:
            column = self.column(name, setting=setting)
            if (why := why_no_ids(column)) is not None:
                return why
            found = CodedIds.of(column)
        self._read[name] = found
        return found

    def require(self, name: str, *, setting: str) -> None:
        """Raise DataError if there is no such column; as `column`, which reads it too."""
        if name not in self.frame.columns:
            raise DataError(
                f"{self.source}: no column {name!r} ({setting}); it has "
                f"{', '.join(map(repr, self.frame.columns))}"
                f"{did_you_mean(name, self.frame.columns)}{self.hint}"
            )

    def _readable(self) -> AbstractContextManager[None]:
        return outside(DataError, self.source, "not a readable parquet file", remedy=_REMEDY)


def read_table(
    path: str,
    *,
    root: Path,
    format: Format = "auto",
    separator: str | None = None,
    escape: str | None = None,
    wanted: Callable[[str], bool] | None = None,
) -> Table:
    """Reads a table file.

    Args:
        path: The file, relative to `root` or absolute.
        root: The data folder.
        format: ``auto`` goes by the file's suffix, before any ``.gz`` or ``.zst``.
        separator: Column separator of csv, tsv and recbole, where it is not the usual one.
        escape: What csv and tsv write before a quote inside quotes, such as a backslash; None is
            the quote itself, twice.
        wanted: Whether a column will be asked for, by its name: the file is then read by columns,
            and text some lines at a time. None reads all of it at once.

    Returns:
        The table, with at least one row.

    Raises:
        DataError: If the file is missing, empty, damaged, or not of that format, or if it has two
            columns of one name.
    """
    file = root / path
    problems = check_read_table(path=path, format=format, separator=separator, escape=escape)
    refuse([f"{file}: {problem}" for problem in problems], DataError)
    kind = _kind(path, format) or ""
    if kind == "sequences":
        raise DataError(f"{file}: a sequence file can only be a log, data.interactions.path")
    _refuse_absent(file)
    with outside(DataError, file, f"not a readable {kind} file", remedy=_REMEDY):
        if _is_blank(file):
            raise DataError(
                f"{file}: the file is empty; give a {kind} file with a row for each record"
            )
        if kind == "parquet":
            table = _parquet(file, whole=wanted is None)
        elif kind == "jsonl":
            parts = json_line_parts(file, str(file), wanted=wanted)
            table = _text_table(parts, str(file), wanted)
        elif kind == "recbole":
            table = _parse_recbole(file, str(file), separator or _SEPARATORS[kind], wanted)
        else:
            dialect = Dialect(separator or _SEPARATORS[kind], escape=escape)
            table = _text_table(delimited_parts(file, str(file), dialect), str(file), wanted)
            table = replace(table, hint=_separator_hint(table.frame))
    if not len(table):
        raise DataError(f"{file}: the file has columns but no rows; give at least one row")
    return table


def table_of(source: Source, *, root: Path, name: str) -> Table:
    r"""A file, read by ``read_table``, or a frame that is in memory, as a Table.

        >>> import polars as pl
        >>> from pathlib import Path
        >>> from mmkd.data.readers import table_of
        >>> table_of(pl.DataFrame({"sku": ["A1"]}), root=Path(), name="items").source
        'items (frame)'

    Args:
        source: A path, relative to `root` or absolute; or a polars, pandas or Arrow frame. The
            index of a pandas frame is no column.
        root: The data folder.
        name: What a frame is called in messages.

    Returns:
        The table, with at least one row.

    Raises:
        DataError: As for ``read_table``; or the source is none of these, or its columns cannot be
            taken over.
    """
    if isinstance(source, (str, Path)):
        return read_table(str(source), root=root)
    told = f"{name} (frame)"
    with outside(
        DataError,
        told,
        "its columns cannot be taken over",
        remedy="give each column values of one type",
        also=(TypeError, ValueError),
    ):
        frame = _frame(source, told)
    if not len(frame):
        raise DataError(f"{told}: the frame has no rows; give at least one row")
    return Table(frame, told, is_file=False)


def _frame(source: Any, told: str) -> pl.DataFrame:
    if isinstance(source, pl.LazyFrame):
        return source.collect()
    if isinstance(source, pl.DataFrame):
        return source
    if type(source).__module__.partition(".")[0] == "pandas" and hasattr(source, "columns"):
        refuse_repeated([str(name) for name in source.columns], told)
        return pl.from_pandas(source)
    if hasattr(source, "__arrow_c_stream__"):
        if (names := getattr(source, "column_names", None)) is not None:
            refuse_repeated(list(names), told)
        return pl.DataFrame(source)
    raise DataError(
        f"{told}: got {type(source).__name__}, wanted a path, or a polars, pandas or Arrow frame"
    )


def check_read_table(**options: Any) -> list[str]:
    """What is wrong with options of `read_table`, a line each; no file is read."""
    format, separator = options.get("format", "auto"), options.get("separator")
    escape = options.get("escape")
    if format != "auto" and format not in _BY_SUFFIX.values():
        return [f"format: got {format!r}, wanted auto, {_KINDS}"]
    if "path" not in options and format == "auto":
        return []
    kind = _kind(options.get("path", ""), format)
    if kind is None:
        return [f"path: cannot tell the format from the name; set format to one of {_KINDS}"]
    if separator is not None and kind not in _SEPARATORS:
        return [f"separator: a {kind} file has no separator; leave it unset"]
    if separator is not None and len(separator.encode()) != 1:
        return [
            f"separator: got {separator!r}, wanted one ASCII character such as ',' or ';'; convert "
            "the file"
        ]
    if escape is not None and kind not in ("csv", "tsv"):
        return [f"escape: a {kind} file has no escapes; leave it unset"]
    if escape is not None and (len(escape.encode()) != 1 or escape in ('"', separator)):
        return [f"escape: got {escape!r}, wanted one ASCII character such as '\\\\'; correct it"]
    return []


def is_sequences(path: str, format: str) -> bool:
    """Whether a path and a format are those of a sequence file."""
    return _kind(path, format) == "sequences"


def _kind(path: str, format: str) -> str | None:
    if format != "auto":
        return format
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in SUFFIXES:
        suffixes.pop()
    return _BY_SUFFIX.get(suffixes[-1]) if suffixes else None


def _refuse_absent(file: Path) -> None:
    with outside(DataError, file, "cannot be read", remedy="give a file"):
        try:
            packing(file)
        except FileNotFoundError:
            raise DataError(
                f"{file}: no such file{_neighbours(file)}; check root and path"
            ) from None


def _parquet(file: Path, *, whole: bool) -> Table:
    content: Path | bytes = file
    if packing(file):
        with opened(file) as packed:
            content = packed.read()
    if whole:
        return Table(read_any_parquet(content), str(file))
    columns = ParquetColumns(content)
    return Table(columns.header, str(file), parquet=columns)


def _text_table(
    parts: Iterator[pl.DataFrame], source: str, wanted: Callable[[str], bool] | None
) -> Table:
    """The parts of a text file, of which the first has no rows, as columns."""
    if wanted is None:
        return Table(pl.concat(parts), source)
    header = next(parts)
    names = list(filter(wanted, header.columns)) or header.columns[:1]  # rows are counted by one
    columns = ParquetColumns.of_parts(header.select(names), (part.select(names) for part in parts))
    return Table(header, source, parquet=columns)


def _neighbours(file: Path) -> str:
    if not file.parent.is_dir():
        return f" (nor is there a folder {file.parent})"
    return did_you_mean(file.name, sorted(entry.name for entry in file.parent.iterdir()))


def _is_blank(file: Path) -> bool:
    with opened(file) as content:
        return not any(part.strip() for part in iter(lambda: content.read(1 << 20), b""))


def _separator_hint(frame: pl.DataFrame) -> str:
    """A one-column file whose header holds another separator was read with the wrong one."""
    if frame.width == 1:
        for other in (";", "\t", "|", ","):
            if other in frame.columns[0]:
                return f"; the header looks separated by {other!r}: set separator to that"
    return ""


# ---- RecBole's atomic files, https://recbole.io/docs/user_guide/data/atomic_files.html


def _parse_recbole(
    file: Path, source: str, separator: str, wanted: Callable[[str], bool] | None
) -> Table:
    """Delimited text without quotes; a header cell is ``name:type``, and ``_seq`` makes lists."""
    parts = delimited_parts(file, source, Dialect(separator, quote=None))
    header = next(parts)
    split = {cell: cell.rpartition(":") for cell in header.columns}
    wrong = [
        cell for cell, (name, _, kind) in split.items() if not name or kind not in _RECBOLE_TYPES
    ]
    if wrong:
        raise DataError(
            f"{source}: header {shown(wrong)} is not name:type with a type of "
            f"{', '.join(_RECBOLE_TYPES)}; correct the header, or set format to csv or tsv"
        )
    refuse_repeated([name for name, _, _ in split.values()], source)
    lists = frozenset(name for name, _, kind in split.values() if kind.endswith("_seq"))
    names = {cell: name for cell, (name, _, _) in split.items()}
    renamed = (part.rename(names) for part in chain([header], parts))
    return replace(_text_table(renamed, source, wanted), space_separated=lists)
