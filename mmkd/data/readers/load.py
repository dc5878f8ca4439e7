"""A user's two files to the catalogue and the log: which columns they are, and what is left out."""

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.data.ids import IdIndex, repeated
from mmkd.data.interactions import (
    Duplicates,
    InteractionLog,
    check_drop_duplicates,
    check_k_core,
    drop_duplicates,
    k_core,
)
from mmkd.data.items import ItemTable
from mmkd.data.readers.columns import read_ids, read_lists, read_numbers, read_text, read_timestamps
from mmkd.data.readers.tables import Format, Table, check_read_table, read_table
from mmkd.data.text_template import TextTemplate
from mmkd.errors import DataError, refuse, shown


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
    r"""Reads a catalogue: one row of the file is one item, in the file's order.

        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from mmkd import load_items
        >>> root = Path(mkdtemp())
        >>> _ = (root / "items.csv").write_text("sku,name,about\nA1,Teapot,red\nB7,Cup,\n")
        >>> items = load_items(path="items.csv", root=root, id="sku", text="{name}. {about}")
        >>> list(items.text)
        [None, 'Teapot. red', 'Cup']

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
    refuse(check_load_items(text=text), DataError)
    table = read_table(path, root=root, format=format, separator=separator)
    ids = read_ids(table, id, setting="id")
    if twice := repeated(ids):
        raise DataError(
            f"{table.source}: {len(twice)} ids of column {id!r} occur more than once: "
            f"{shown(twice)}; keep one row for each item"
        )
    empty = pl.Series([None], dtype=pl.String).new_from_index(0, len(ids))
    titles = empty if title is None else read_text(table, title, setting="title")
    labels = (
        pl.Series([[]], dtype=pl.List(pl.String)).new_from_index(0, len(ids))
        if attributes is None
        else read_lists(table, attributes, setting="attributes", separator=attribute_separator)
    )
    paths = empty
    if image is not None:
        cells = read_text(table, image, setting="image")
        paths = _image_paths(cells, root / image_root, table.source)
    frame = pl.DataFrame(
        {
            "id": ids,
            "title": titles.fill_null(ids),
            "text": empty if text is None else _render(table, text),
            "image_path": paths,
            "attributes": labels,
        }
    )
    padding = pl.DataFrame([("", "", None, None, [])], schema=frame.schema, orient="row")
    return ItemTable.of(pl.concat([padding, frame]))


def check_load_items(**options: Any) -> list[str]:
    """What is wrong with options of `load_items`, a line each; no file is read."""
    problems = check_read_table(**options)
    if options.get("text") is not None:
        try:
            TextTemplate.parse(options["text"])
        except DataError as error:
            problems.append(f"text: {error}")
    return problems


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
    r"""Reads a log: one row of the file is one event.

    Filters apply in the order unknown items, ratings, duplicates, k-core. Items without events
    stay in the catalogue, as cold candidates.

        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from mmkd import load_interactions, load_items
        >>> root = Path(mkdtemp())
        >>> _ = (root / "items.csv").write_text("item_id\nA1\nB7\n")
        >>> _ = (root / "log.csv").write_text(
        ...     "user_id,item_id,timestamp\nada,B7,2024-03-01\nada,A1,2024-03-02\n"
        ... )
        >>> items = load_items(path="items.csv", root=root)
        >>> log = load_interactions(items, path="log.csv", root=root)
        >>> log.user_ids, log.item
        (('ada',), array([2, 1]))

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
        DataError: If the file or a column is missing or malformed, an id, timestamp or rating is
            missing, an item is unknown, or no event is left.
    """
    options = dict(min_user_events=min_user_events, min_item_events=min_item_events)
    refuse(
        check_load_interactions(
            rating=rating,
            min_rating=min_rating,
            duplicates=duplicates,
            unknown_items=unknown_items,
            **options,
        ),
        DataError,
    )
    table = read_table(path, root=root, format=format, separator=separator)
    names = read_ids(table, user, setting="user")
    user_ids = names.unique(maintain_order=True)
    rows = _item_rows(table, item, items, drop=unknown_items == "drop")
    timestamps = (
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
    log = InteractionLog(
        user=IdIndex(user_ids).find(names),
        item=np.where(kept, rows, 1),  # a valid row for the dropped ones
        timestamp=timestamps,
        user_ids=tuple(user_ids),
    )
    try:
        return k_core(drop_duplicates(log.keep(kept), duplicates=duplicates), **options)
    except DataError as error:
        raise DataError(f"{table.source}: {error}") from None


def check_load_interactions(**options: Any) -> list[str]:
    """What is wrong with options of `load_interactions`, a line each; no file is read."""
    problems = check_read_table(**options)
    if options.get("min_rating") is not None and options.get("rating", "") is None:
        problems.append("min_rating: needs ratings; name their column with rating")
    unknown = options.get("unknown_items", "error")
    if unknown not in ("error", "drop"):
        problems.append(f"unknown_items: got {unknown!r}, wanted 'error' or 'drop'")
    return problems + check_drop_duplicates(**options) + check_k_core(**options)


# ---- columns of the catalogue


def _render(table: Table, text: str) -> pl.Series:
    template = TextTemplate.parse(text)
    return template.render(
        {name: read_text(table, name, setting="text") for name in template.columns}
    )


def _image_paths(cells: pl.Series, folder: Path, source: str) -> pl.Series:
    """Picture paths under a folder, each checked to stay there, links followed."""
    web = cells.filter(cells.str.contains("^https?://"))
    if len(web):
        raise DataError(
            f"{source}: {len(web)} image paths are web addresses: {shown(web.to_list())}; fetch "
            "the pictures and give their files"
        )
    folder = folder.absolute()  # a saved table must not depend on the working folder
    try:
        paths = os.path.join(folder, "") + cells
    except UnicodeEncodeError:
        raise DataError(
            f"{source}: the pictures' folder {str(folder)!r} is not UTF-8 text; rename it"
        ) from None
    outside = cells.str.contains(r"\x00|^/|(^|/)\.\.(/|$)").fill_null(False)
    outside |= _leave(paths.set(outside, None), folder)
    if outside.any():
        raise DataError(
            f"{source}: {outside.sum()} image paths leave the folder {folder}: "
            f"{shown(cells.filter(outside).to_list())}; use paths relative to it, without '..' or "
            "links that point outside, or set image_root"
        )
    return paths


def _leave(paths: pl.Series, folder: Path) -> pl.Series:
    """Which paths lie outside a folder once links are followed, [n] bool."""
    top = os.path.realpath(folder)

    def leaves(path: str) -> bool:
        return os.path.commonpath([top, os.path.realpath(path)]) != top

    # one realpath for each folder and for each link, not for each picture
    parents = paths.str.replace(r"/[^/]*$", "")
    left = [parent for parent in parents.drop_nulls().unique() if leaves(parent)]
    linked = (path is not None and os.path.islink(path) and leaves(path) for path in paths)
    return parents.is_in(left).fill_null(False) | pl.Series(linked, dtype=pl.Boolean)


# ---- columns of the log


def _item_rows(table: Table, name: str, items: ItemTable, *, drop: bool) -> NDArray[np.int64]:
    """Rows of the catalogue, [E]; 0 where the item is unknown and may be dropped."""
    ids = read_ids(table, name, setting="item")
    rows = items.find(ids)
    unknown = rows == 0
    if unknown.any() and not drop:
        names = ids.filter(pl.Series(unknown)).unique(maintain_order=True).to_list()
        raise DataError(
            f"{table.source}: {unknown.sum()} of {len(ids)} events are of {len(names)} items that "
            f"the catalogue lacks: {shown(names)}{items.suggestion(names[0])}; add the items, or "
            "set unknown_items to drop"
        )
    return rows
