"""A log file to an InteractionLog over a catalogue's rows."""

from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.data.errors import DataError, did_you_mean, shown
from mmkd.data.interactions import Duplicates, InteractionLog, drop_duplicates, k_core
from mmkd.data.items import ItemTable
from mmkd.data.readers.columns import read_ids, read_numbers, read_timestamps
from mmkd.data.readers.tables import Format, Table, read_table


def load_interactions(
    items: ItemTable,
    *,
    path: str,
    root: Path,
    user: str = "user_id",
    item: str = "item_id",
    timestamp: str | None = "timestamp",
    rating: str | None = None,
    min_rating: float | None = None,
    min_user_events: int = 1,
    min_item_events: int = 1,
    duplicates: Duplicates = "keep",
    unknown_items: Literal["error", "drop"] = "error",
    format: Format = "auto",
    separator: str | None = None,
) -> InteractionLog:
    """Reads a log: one row of the file is one event.

    Filters apply in the order unknown items, ratings, duplicates, k-core. Items without events
    stay in the catalogue, as cold candidates.

    Args:
        items: The catalogue.
        path: The file, relative to `root`.
        root: The data folder.
        user: Column of the external user ids.
        item: Column of the external item ids.
        timestamp: Column of numbers or ISO dates; None takes the order of the file.
        rating: Column of ratings.
        min_rating: Drops events rated below it.
        min_user_events: Fewest events of a user that stays (k-core, with the next).
        min_item_events: Fewest events of an item whose events stay.
        duplicates: Which event of a user with an item to keep, by time: ``keep`` keeps all.
        unknown_items: What to do with events of items outside the catalogue.
        format: The file's format; ``auto`` goes by the suffix.
        separator: Column separator of a text format, where it is not the usual one.

    Returns:
        The log, in the order of the file.

    Raises:
        DataError: If the file or a column is missing or malformed, an id, moment or rating is
            missing, an item is unknown, or no event is left.
    """
    if min_rating is not None and rating is None:
        raise DataError(f"min_rating={min_rating} needs ratings; name their column with rating")
    if unknown_items not in ("error", "drop"):
        raise DataError(f"unknown_items={unknown_items!r}; use 'error' or 'drop'")
    table = read_table(path, root=root, format=format, separator=separator)
    user_ids, users = _number_users(read_ids(table, user, setting="user"))
    rows = _item_rows(table, item, items, drop=unknown_items == "drop")
    moments = (
        np.arange(len(table), dtype=np.float64)
        if timestamp is None
        else read_timestamps(table, timestamp, setting="timestamp")
    )
    kept = rows > 0
    if rating is not None:
        ratings = read_numbers(table, rating, setting="rating")
        if min_rating is not None:
            kept &= ratings >= min_rating
    if not kept.any():
        bound = "" if min_rating is None else f" with {rating} >= {min_rating}"
        raise DataError(
            f"{table.source}: none of {len(table)} events is of an item of the catalogue{bound}; "
            "check that both files write ids alike"
        )
    rows = np.where(kept, rows, 1)  # a valid row for the dropped ones
    log = InteractionLog(user=users, item=rows, timestamp=moments, user_ids=user_ids).keep(kept)
    log = drop_duplicates(log, duplicates=duplicates)
    try:
        return k_core(log, min_user_events=min_user_events, min_item_events=min_item_events)
    except DataError as error:
        raise DataError(f"{table.source}: {error}") from None


def _number_users(ids: pl.Series) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    unique = ids.unique(maintain_order=True)
    return tuple(unique), _positions(ids, unique)


def _item_rows(table: Table, name: str, items: ItemTable, *, drop: bool) -> NDArray[np.int64]:
    """Rows of the catalogue, [E]; 0 where the item is unknown and may be dropped."""
    ids = read_ids(table, name, setting="item")
    rows = _positions(ids, pl.Series(items.ids[1:], dtype=pl.String)) + 1
    unknown = rows == 0
    if unknown.any() and not drop:
        names = ids.filter(pl.Series(unknown)).unique(maintain_order=True).to_list()
        raise DataError(
            f"{table.source}: {unknown.sum()} of {len(ids)} events are of {len(names)} items that "
            f"the catalogue lacks: {shown(names)}{did_you_mean(names[0], items.ids[1:])}; add the "
            "items, or set unknown_items to drop"
        )
    return rows


def _positions(values: pl.Series, known: pl.Series) -> NDArray[np.int64]:
    """Position of each value among known ones, [n] int64; -1 where it is unknown."""
    right = pl.DataFrame({"key": known}).with_row_index("position")
    joined = pl.DataFrame({"key": values}).join(
        right, on="key", how="left", maintain_order="left", validate="m:1"
    )
    return joined["position"].cast(pl.Int64).fill_null(-1).to_numpy().astype(np.int64)
