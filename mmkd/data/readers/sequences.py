"""Sequence files: a log, filtered and in order, user after user; to be mapped, not read.

From an `InteractionLog` to one Arrow stream (suffix ``.sequences``), a row a user, its columns as
they lie in memory; and back to the same log, whichever split is then taken. Its arrays are the
file's pages: one copy for all processes of a machine, which each touches where its batches gather.
The file names the catalogue that its rows are of and the options it was read with, and is used with
no others.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mmkd.column_files import ArrowMap, is_parquet, read_parquet, write_arrow
from mmkd.data.ids import digest_of
from mmkd.data.interactions import InteractionLog, LeftOut
from mmkd.data.items import ItemTable
from mmkd.errors import DataError, outside

_KEY = "mmkd.sequences"
_FORMAT = 1
_AGAIN = "write it again with mmkd data sequences"


def write_sequences(
    path: Path,
    log: InteractionLog,
    items: ItemTable,
    *,
    options: Mapping[str, Any],
    left_out: LeftOut,
) -> None:
    """Writes a log user after user, each user's events by time, whole or not at all.

    Args:
        path: The file.
        log: The events.
        items: Their catalogue.
        options: Of ``load_interactions``, by which the log was read; without path and format.
        left_out: What of it was left out.

    Raises:
        DataError: The file cannot be written.
    """
    about = {
        "format": _FORMAT,
        "catalogue": digest_of(items.ids),
        "users": len(log.user_ids),
        "events": len(log),
        "options": dict(options),
        "left_out": asdict(left_out),
    }
    with outside(DataError, path, "cannot be written", remedy="give another place"):
        write_arrow(path, _by_user(log), {_KEY: about})


def read_sequences(
    path: Path, items: ItemTable, options: Mapping[str, Any] | None = None
) -> tuple[InteractionLog, LeftOut, dict[str, Any]]:
    """Maps a log that `write_sequences` wrote.

    Args:
        path: The file.
        items: The catalogue that it was written with.
        options: That it must have been written with; others may be any.

    Returns:
        The log, user after user; what was left out; and all options it was written with.

    Raises:
        DataError: The file is missing, damaged or none, or is of another catalogue or of other
            options.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; check root and path")
    with outside(
        DataError,
        path,
        "not a readable sequence file",
        remedy=_AGAIN,
        also=(ValueError, KeyError, TypeError),
    ):
        read = _of_parquet if is_parquet(path) else _mapped
        log, about = read(path)
        if about["format"] != _FORMAT:
            raise DataError(f"{path}: is of another version of mmkd; {_AGAIN}")
        _check(path, about, items, options or {})
        left_out = dict(about["left_out"])
        left_out["unknown_items"] = tuple(left_out["unknown_items"])
        return log, LeftOut(**left_out), dict(about["options"])


def _mapped(path: Path) -> tuple[InteractionLog, dict[str, Any]]:
    """The log, and what is kept with it."""
    mapped = ArrowMap(path)
    log = InteractionLog(
        user=mapped.numbers("rows"),
        item=mapped.numbers("items"),
        timestamp=mapped.numbers("timestamps"),
        user_ids=tuple(mapped.texts("user")),
    )
    return log, mapped.kept[_KEY]


def _of_parquet(path: Path) -> tuple[InteractionLog, dict[str, Any]]:
    """As `_mapped`, of a file that was written before they were mapped."""
    frame, kept = read_parquet(path)
    if _KEY not in kept:
        raise ValueError("is another table")
    lengths = frame["items"].list.len().to_numpy()
    log = InteractionLog(
        user=np.repeat(np.arange(len(frame), dtype=np.int32), lengths),
        item=frame["items"].explode().to_numpy().astype(np.int32, copy=False),
        timestamp=frame["timestamps"].explode().to_numpy(),
        user_ids=tuple(frame["user"]),
    )
    return log, kept[_KEY]


def _check(
    path: Path, about: Mapping[str, Any], items: ItemTable, options: Mapping[str, Any]
) -> None:
    if about["catalogue"] != digest_of(items.ids):
        raise DataError(f"{path}: is of another catalogue, whose rows are other items; {_AGAIN}")
    for name, value in options.items():
        if about["options"].get(name) != value:
            raise DataError(
                f"{path}: {name}: got {value!r}, but the file was written with "
                f"{about['options'].get(name)!r}; leave {name} out, or {_AGAIN}"
            )


def _by_user(log: InteractionLog) -> pa.RecordBatch:
    """A row a user: ``user``, and its events' ``rows`` (of the user), ``items`` and times."""
    order = log.by_user()
    offsets = pa.array(np.append(0, np.cumsum(log.counts())), pa.int64())
    columns = {
        "user": pa.array(log.user_ids, pa.large_string()),
        "rows": _lists(offsets, log.user, order, np.int32),
        "items": _lists(offsets, log.item, order, np.int32),
        "timestamps": _lists(offsets, log.timestamp, order, np.float64),
    }
    return pa.record_batch(columns)


def _lists(offsets: pa.Array, values: NDArray[Any], order: Any, dtype: Any) -> pa.Array:
    values = values if order is None else values[order]
    return pa.LargeListArray.from_arrays(offsets, pa.array(values.astype(dtype, copy=False)))
