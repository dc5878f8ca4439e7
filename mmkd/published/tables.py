"""Tables: what every data set is brought to, and the files it comes in, wherever they lie."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import polars as pl

from mmkd.errors import DataError, outside
from mmkd.files import open_plain
from mmkd.published.archives import read_member

MOST_TEXT_BYTES = 500_000_000  # of a text file that is read whole


@dataclass(frozen=True)
class Prepared:
    """A data set in one form.

    Attributes:
        items: ``item_id``, ``title`` and others; ``picture`` is a file's name.
        events: ``user_id``, ``item_id``, ``timestamp`` and others.
        columns: What the recipe says of the columns, as for ``Dataset.load``.
        notes: A line each on what is left out or missing.
    """

    items: pl.DataFrame
    events: pl.DataFrame
    columns: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def located(raw: Path, name: str) -> Path | None:
    """A file by its name in a folder, at its top or in the folder an archive was unpacked to."""
    found = raw / name
    if found.is_file():
        return found
    return next((path for path in sorted(raw.glob(f"*/{name}")) if path.is_file()), None)


def content(raw: Path, archive: str, member: str) -> bytes:
    """A small file: as it lies in the folder, or out of the archive in it.

    Raises:
        DataError: There is neither, or it can't be read.
    """
    packed, plain = located(raw, archive), located(raw, Path(member).name)
    if plain is not None:
        with outside(DataError, plain, "can't be read", remedy="get it again"):
            with open_plain(plain) as file:
                found = file.read(MOST_TEXT_BYTES + 1)
        if len(found) > MOST_TEXT_BYTES:
            raise DataError(f"{plain}: is larger than {MOST_TEXT_BYTES:,} bytes; get it again")
        return found
    if packed is None:
        raise DataError(f"{raw}: holds neither {archive} nor {member}; give the folder that does")
    return read_member(packed, member, most_bytes=MOST_TEXT_BYTES)


_LONGEST = 1 << 26  # bytes of a line; the longest published ones have some 100,000


def lines(raw: Path, name: str) -> Iterator[bytes]:
    """The lines of a file, plain or gzip, without the ends; DataError where it is missing.

    ``NAME.gz`` is found by NAME too.
    """
    path = located(raw, name) or located(raw, name.removesuffix(".gz"))
    if path is None:
        raise DataError(f"{raw}: holds no {name}; give the folder that does")
    remedy = "get it again"
    with outside(DataError, path, "is damaged", remedy=remedy, also=(EOFError,)):
        with open_plain(path) as file:
            packed = path.suffix == ".gz"
            opened = cast(BufferedReader, gzip.open(file)) if packed else file
            while line := opened.readline(_LONGEST + 1):
                if len(line) > _LONGEST:
                    raise DataError(f"{path}: a line of over {_LONGEST:,} bytes; {remedy}")
                yield line.rstrip(b"\r\n")


def parsed(text: bytes, what: str, *, names: list[str], separator: bytes) -> pl.DataFrame:
    """Rows of plain cells, as text; no header, no quotes.

    Args:
        text: In ASCII or UTF-8.
        what: What messages call it.
        names: The columns, all there must be.
        separator: What parts the cells.

    Raises:
        DataError: A row has other than so many cells.
    """
    rows = [line.split(separator) for line in text.splitlines() if line]
    for place, row in enumerate(rows, start=1):
        if len(row) != len(names):
            raise DataError(
                f"{what}: line {place} has {len(row)} cells, wanted {len(names)} "
                f"({', '.join(names)}); it is another file than the published one, get it again"
            )
    with outside(DataError, what, "is no text", remedy="get it again"):
        columns = {
            name: [row[place].decode("utf-8") for row in rows] for place, name in enumerate(names)
        }
    return pl.DataFrame(columns, schema=dict.fromkeys(names, pl.String))


def numbers(frame: pl.DataFrame, what: str, **types: Any) -> pl.DataFrame:
    """Columns of text as numbers; DataError where one is none."""
    try:
        return frame.with_columns(pl.col(name).cast(kind) for name, kind in types.items())
    except pl.exceptions.InvalidOperationError as error:
        told = str(error).splitlines()[0]
        raise DataError(
            f"{what}: {', '.join(types)}: {told}; it is another file than the published one, get "
            "it again"
        ) from error
