"""A catalogue file to an ItemTable."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.data.interactions import Duplicates, InteractionLog, drop_duplicates, k_core
from mmkd.data.items import ItemTable, repeated
from mmkd.data.readers.columns import read_ids, read_lists, read_numbers, read_text, read_timestamps
from mmkd.data.readers.tables import Format, Table, read_table
from mmkd.data.text_template import TextTemplate
from mmkd.errors import DataError, did_you_mean, shown


def load_items(
    *,
    path: str,
    root: Path,
    id: str = "item_id",
    title: str | None = None,
    text: str | None = None,
    image: str | None = None,
    attributes: str | None = None,
    attribute_separator: str = "|",
    image_root: str = ".",
    format: Format = "auto",
    separator: str | None = None,
) -> ItemTable:
    """Reads a catalogue: one row of the file is one item, in the file's order.

    Args:
        path: The file, relative to `root`.
        root: The data folder.
        id: Column of the external ids.
        title: Column of the titles to show; without one, and where it is empty, the id is shown.
        text: Template of the encoders' text, such as ``{title}. {plot}``; a segment (a placeholder
            and the literal text before it) is dropped where its column is empty.
        image: Column of the picture files, relative to `image_root`; an empty cell is no picture.
        attributes: Column of labels such as genres.
        attribute_separator: What parts the labels; list columns and RecBole's ``_seq`` columns
            need none.
        image_root: Folder of the pictures, relative to `root`; no picture may lie outside it.
        format: The file's format; ``auto`` goes by the suffix.
        separator: Column separator of a text format, where it is not the usual one.

    Returns:
        The table. A picture file that does not exist is kept: the embedding cache records it.

    Raises:
        DataError: If the file or a column is missing or malformed, an id is missing or repeated,
            or a picture's path is a web address or leaves `image_root`.
    """
    table = read_table(path, root=root, format=format, separator=separator)
    ids = read_ids(table, id, setting="id").to_list()
    twice = repeated(ids)
    if twice:
        raise DataError(
            f"{table.source}: {len(twice)} ids of column {id!r} occur more than once: "
            f"{shown(twice)}; keep one row for each item"
        )
    none: list[str | None] = [None] * len(ids)
    titles = none if title is None else read_text(table, title, setting="title")
    texts = none if text is None else _render(table, text)
    paths = none if image is None else read_text(table, image, setting="image")
    labels = (
        [()] * len(ids)
        if attributes is None
        else read_lists(table, attributes, setting="attributes", separator=attribute_separator)
    )
    return ItemTable(
        ids=("", *ids),
        titles=("", *(name or item_id for name, item_id in zip(titles, ids, strict=True))),
        text=(None, *texts),
        image_path=(None, *_image_paths(paths, root / image_root, table.source)),
        attributes=((), *labels),
    )


def _render(table: Table, text: str) -> list[str | None]:
    template = TextTemplate.parse(text)
    columns = [read_text(table, name, setting="text") for name in template.columns]
    return [
        template.render(dict(zip(template.columns, row, strict=True)))
        for row in zip(*columns, strict=True)
    ]


def _image_paths(cells: list[str | None], folder: Path, source: str) -> list[Path | None]:
    """Picture paths under a folder, each checked to stay there, links followed."""
    addresses = [cell for cell in cells if cell and cell.startswith(("http://", "https://"))]
    if addresses:
        raise DataError(
            f"{source}: {len(addresses)} image paths are web addresses: {shown(addresses)}; fetch "
            "the pictures and give their files"
        )
    folder = folder.absolute()  # a saved table must not depend on the working folder
    top = os.path.realpath(folder)
    real_folders: dict[str, str] = {}  # one realpath for each folder, not for each picture
    outside: list[str] = []
    paths: list[Path | None] = []
    for cell in cells:
        if cell is None:
            paths.append(None)
            continue
        joined = os.path.join(folder, cell)
        parent, name = os.path.split(joined)
        if "\0" in cell or os.path.isabs(cell) or ".." in Path(cell).parts:
            outside.append(cell)
            continue
        if parent not in real_folders:
            real_folders[parent] = os.path.realpath(parent)
        real = os.path.join(real_folders[parent], name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        if os.path.commonpath([top, real]) != top:
            outside.append(cell)
        paths.append(Path(joined))
    if outside:
        raise DataError(
            f"{source}: {len(outside)} image paths leave the folder {folder}: {shown(outside)}; "
            "use paths relative to it, without '..' or links that point outside, or set image_root"
        )
    return paths


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
