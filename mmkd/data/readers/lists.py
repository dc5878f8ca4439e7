"""Lists a user gives beside the data: ids in stock, users to serve, histories of other people."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mmkd.data.items import ItemTable
from mmkd.data.readers.columns import read_ids
from mmkd.data.readers.load import load_interactions
from mmkd.data.readers.tables import read_table
from mmkd.errors import DataError, did_you_mean, outside


def load_ids(path: Path, *, column: str) -> list[str]:
    """Ids, of items or of users.

    Args:
        path: A table with the ids in ``column``, or in its only column; or a text file (.txt) with
            an id a line.
        column: Such as ``item_id``.

    Returns:
        The ids in the file's order, each once.

    Raises:
        DataError: The file cannot be read, or has no such column.
    """
    if path.suffix == ".txt":
        with outside(DataError, path, "cannot be read", remedy="give a text file, an id a line"):
            lines = path.read_text("utf-8").splitlines()
        ids = [line.strip() for line in lines if line.strip()]
        return list(dict.fromkeys(ids))
    table = read_table(path.name, root=path.parent)
    names = table.frame.columns
    name = column if column in names else names[0]
    if column not in names and len(names) > 1:
        raise DataError(
            f"{path}: no column {column}, but {', '.join(names)}{did_you_mean(column, names)}; "
            "rename it, or give a file with this column alone"
        )
    return list(dict.fromkeys(read_ids(table, name, setting="column").to_list()))


def load_histories(path: Path, items: ItemTable, **columns: Any) -> dict[str, list[str]]:
    """Histories by name, from events of people who need not be in the log.

    Args:
        path: An event table, as the log is one.
        items: The catalogue.
        **columns: Names of its columns, options of `load_interactions`.

    Returns:
        User to item ids, oldest first, in the order of the users' first events.

    Raises:
        DataError: As for `load_interactions`.
    """
    log = load_interactions(items, path=path.name, root=path.parent, **columns)
    order = np.lexsort((np.arange(len(log.user)), log.timestamp, log.user))
    events = pl.DataFrame({"user": log.user[order], "item": log.item[order]})
    grouped = events.group_by("user", maintain_order=True).agg("item")
    ids: Sequence[str] = items.ids
    return {log.user_ids[user]: [ids[row] for row in rows] for user, rows in grouped.iter_rows()}
