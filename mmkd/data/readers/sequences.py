"""Sequence files: a log, filtered and in order, user after user; to be read again in no time.

From an `InteractionLog` to one Parquet file (suffix ``.sequences``), a row a user and a row group a
block of users, and back to the same log, whichever split is then taken. The file names the
catalogue that its rows are of and the options it was read with, and is used with no others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from mmkd.data.ids import digest_of
from mmkd.data.interactions import InteractionLog, LeftOut
from mmkd.data.items import ItemTable
from mmkd.errors import DataError, outside
from mmkd.files import ParquetParts, write_parquet_parts

_KEY = "mmkd.sequences"
_FORMAT = 1
_BLOCK = 1 << 20  # events of a row group, but for a user with more
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
        write_parquet_parts(path, _blocks(log), {_KEY: about})


def read_sequences(
    path: Path, items: ItemTable, options: Mapping[str, Any] | None = None
) -> tuple[InteractionLog, LeftOut, dict[str, Any]]:
    """Reads a log that `write_sequences` wrote, a block of users at a time.

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
        with ParquetParts(path) as parts:
            about = parts.kept[_KEY]
            if about["format"] != _FORMAT:
                raise DataError(f"{path}: is of another version of mmkd; {_AGAIN}")
            _check(path, about, items, options or {})
            log = _joined(parts, users=about["users"], events=about["events"])
        left_out = dict(about["left_out"])
        left_out["unknown_items"] = tuple(left_out["unknown_items"])
        return log, LeftOut(**left_out), dict(about["options"])


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


def _blocks(log: InteractionLog) -> Iterator[pl.DataFrame]:
    """A row a user: ``user``, ``items`` and ``timestamps``; blocks of whole users."""
    order = log.by_user()
    counts = np.bincount(log.user, minlength=len(log.user_ids))
    ends = np.cumsum(counts)  # [U]
    first, begin = 0, 0
    while first < len(ends):
        last = max(int(np.searchsorted(ends, begin + _BLOCK, side="right")), first + 1)
        end = int(ends[last - 1])
        events = slice(begin, end) if order is None else order[begin:end]
        offsets = pa.array(np.append(0, ends[first:last] - begin), pa.int64())
        columns = {
            "user": pa.array(log.user_ids[first:last], pa.large_string()),
            "items": _lists(offsets, log.item[events].astype(np.int32)),
            "timestamps": _lists(offsets, log.timestamp[events]),
        }
        yield pl.DataFrame(pl.from_arrow(pa.table(columns)))
        first, begin = last, end


def _lists(offsets: pa.Array, values: Any) -> pa.Array:
    return pa.LargeListArray.from_arrays(offsets, pa.array(values))


def _joined(parts: ParquetParts, *, users: int, events: int) -> InteractionLog:
    item = np.empty(events, np.int32)
    timestamp = np.empty(events, np.float64)
    lengths, names, at = [], [], 0
    for part in parts:
        lengths.append(part["items"].list.len().to_numpy())
        names.append(part["user"])
        end = at + int(lengths[-1].sum())
        item[at:end] = part["items"].explode().to_numpy()
        timestamp[at:end] = part["timestamps"].explode().to_numpy()
        at = end
    if at != events or sum(map(len, names)) != users:
        raise ValueError(f"holds {at} events, not the {events} that it names")
    user_ids = tuple(pl.concat(names)) if names else ()
    user = np.repeat(np.arange(users, dtype=np.int32), np.concatenate(lengths) if lengths else 0)
    return InteractionLog(user=user, item=item, timestamp=timestamp, user_ids=user_ids)
