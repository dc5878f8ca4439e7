"""A user's two tables to the catalogue and the log: which columns they are, what is left out."""

import inspect
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.data.ids import CodedIds, repeated
from mmkd.data.interactions import (
    Duplicates,
    InteractionLog,
    LeftOut,
    check_drop_duplicates,
    check_k_core,
    drop_duplicates,
    k_core,
)
from mmkd.data.items import ItemTable
from mmkd.data.readers.columns import (
    read_codes,
    read_ids,
    read_lists,
    read_numbers,
    read_text,
    read_timestamps,
)
from mmkd.data.readers.guessing import GUESS, is_usual
from mmkd.data.readers.sequences import read_sequences
from mmkd.data.readers.tables import (
    Format,
    Table,
    check_read_table,
    is_sequences,
    read_table,
)
from mmkd.data.text_template import TextTemplate
from mmkd.data.timestamps import PER_SECOND, Unit
from mmkd.errors import DataError, one_of, refuse, shown, within

UnknownItems = Literal["error", "drop"]

_NOT_TEXT = re.compile(r"[\ud800-\udfff]")  # of a file's name that is no UTF-8, as cells are


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
    escape: str | None = None,
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
        escape: What a csv or tsv file writes before a quote inside quotes, such as a backslash;
            None is the quote itself, twice.

    Returns:
        The table. A picture file that does not exist is kept: the embedding cache records it.

    Raises:
        DataError: If the file or a column is missing or malformed, an id is missing or repeated,
            or a picture's path is a web address or leaves `image_root`.
    """
    refuse(check_load_items(text=text), DataError)
    return items_of(
        read_table(path, root=root, format=format, separator=separator, escape=escape),
        root=root,
        id=id,
        title=title,
        text=text,
        image=image,
        attributes=attributes,
        attribute_separator=attribute_separator,
        image_root=image_root,
    )


def items_of(
    table: Table,
    *,
    root: Path,
    id: str,
    title: str | None,
    text: str | None,
    image: str | None,
    attributes: str | None,
    attribute_separator: str,
    image_root: str,
) -> ItemTable:
    """A table's columns as a catalogue; as ``load_items``, whose options these are."""
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
    if is_sequences(options.get("path", ""), options.get("format", "auto")):
        problems.append("path: a sequence file is no catalogue; give the table of the items")
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
    unknown_items: UnknownItems = "error",
    max_unknown: float = 0.5,
    timestamp_unit: Unit | None = None,
    timestamp_format: str | None = None,
    format: Format = "auto",
    separator: str | None = None,
    escape: str | None = None,
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
        >>> log.user_ids, log.item.tolist()
        (('ada',), [2, 1])

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
        max_unknown: Largest share of the events that ``drop`` may drop as such; above it the two
            files hardly mean the same items.
        timestamp_unit: What numbers count, ``s``, ``ms``, ``us`` or ``ns``, so that they can be
            compared with dates; None takes them as they are.
        timestamp_format: How dates are written, in strptime's codes such as ``%d/%m/%Y %H:%M``.
        format: The file's format; ``auto`` goes by the suffix.
        separator: Column separator of a text format, where it is not the usual one.
        escape: What a csv or tsv file writes before a quote inside quotes, such as a backslash;
            None is the quote itself, twice.

    Returns:
        The log, in the order of the file.

    Raises:
        DataError: If the file or a column is missing or malformed, an id, timestamp or rating is
            missing, an item is unknown, `user` and `item` are swapped, or no event is left.
    """
    options: dict[str, Any] = dict(
        rating=rating,
        min_rating=min_rating,
        min_user_events=min_user_events,
        min_item_events=min_item_events,
        duplicates=duplicates,
        unknown_items=unknown_items,
        max_unknown=max_unknown,
        timestamp_unit=timestamp_unit,
        timestamp_format=timestamp_format,
    )
    refuse(check_load_interactions(**options), DataError)
    columns: dict[str, Any] = {"user": user, "item": item, "timestamp": timestamp}
    if is_sequences(path, format):
        return read_sequences(root / path, items, unlike_defaults(columns | options))[0]
    table = read_table(
        path,
        root=root,
        format=format,
        separator=separator,
        escape=escape,
        wanted={user, item, timestamp, rating}.__contains__,
    )
    return events_of(table, items, **columns, **options)[0]


def defaults_of(reader: Callable[..., object]) -> dict[str, Any]:
    """The options of a reader that a recipe may set, with their defaults."""
    return {
        option.name: option.default
        for option in inspect.signature(reader).parameters.values()
        if option.name not in ("root", "items")
    }


def unlike_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of ``load_interactions`` that were set to something else."""
    known = defaults_of(load_interactions)
    return {k: v for k, v in options.items() if v not in (known[k], GUESS)}


def events_of(
    table: Table,
    items: ItemTable,
    *,
    user: str,
    item: str,
    timestamp: str | None,
    rating: str | None,
    min_rating: float | None,
    min_user_events: int,
    min_item_events: int,
    duplicates: Duplicates,
    unknown_items: UnknownItems,
    max_unknown: float,
    timestamp_unit: Unit | None,
    timestamp_format: str | None,
) -> tuple[InteractionLog, LeftOut]:
    """A table's columns as a log, and what was left out; as ``load_interactions``."""
    users = read_codes(table, user, setting="user")
    ids = read_codes(table, item, setting="item")
    rows_of = items.find(ids.known).astype(np.int32)  # [K]
    unknown = ids.known.filter(pl.Series(rows_of == 0)).to_list()
    rows = rows_of[ids.codes]
    _refuse_swapped(table, items, user=(user, users), item=(item, ids), rows=rows)
    if unknown:
        _refuse_unknown(
            table, items, rows, unknown, share=max_unknown if unknown_items == "drop" else None
        )
    timestamps = (
        np.arange(len(table), dtype=np.float64)
        if timestamp is None
        else read_timestamps(
            table, timestamp, setting="timestamp", unit=timestamp_unit, format=timestamp_format
        )
    )
    known = rows > 0
    kept = known
    if rating is not None:
        ratings = read_numbers(table, rating, setting="rating")
        if min_rating is not None:
            kept = known & (ratings >= min_rating)
    if not kept.any():
        bound = "" if min_rating is None else f" with {rating} >= {min_rating}"
        raise DataError(
            f"{table.source}: none of {len(table)} events is of an item of the catalogue{bound}; "
            "check that both files write ids alike"
        )
    log = InteractionLog(
        user=users.codes,
        item=rows if kept.all() else np.where(kept, rows, 1),  # valid rows for the dropped ones
        timestamp=timestamps,
        user_ids=tuple(users.known),
    ).keep(kept)
    single = drop_duplicates(log, duplicates=duplicates)
    try:
        core = k_core(single, min_user_events=min_user_events, min_item_events=min_item_events)
    except DataError as error:
        raise DataError(f"{table.source}: {error}") from None
    return core, LeftOut(
        events=len(table),
        unknown=int((~known).sum()),
        unknown_items=tuple(unknown),
        rated_low=int((known & ~kept).sum()),
        repeated=len(log) - len(single),
        rare=len(single) - len(core),
        users=len(users.known) - len(core.user_ids),
    )


def check_load_interactions(**options: Any) -> list[str]:
    """What is wrong with options of `load_interactions`, a line each; no file is read."""
    problems = check_read_table(**options)
    if options.get("min_rating") is not None and options.get("rating", "") is None:
        problems.append("min_rating: needs ratings; name their column with rating")
    unknown = options.get("unknown_items", "error")
    if unknown not in ("error", "drop"):
        problems.append(f"unknown_items: got {unknown!r}, wanted 'error' or 'drop'")
    problems += within(0, 1, "a share of the events", max_unknown=options.get("max_unknown"))
    problems += one_of(PER_SECOND, timestamp_unit=options.get("timestamp_unit"))
    format = options.get("timestamp_format")
    if format is not None and not _is_date_format(format):
        problems.append(
            f"timestamp_format: got {format!r}, wanted strptime's codes such as '%d/%m/%Y %H:%M'"
        )
    if format is not None and options.get("timestamp_unit") is not None:
        problems.append("timestamp_unit: is of numbers, timestamp_format of dates; give one")
    return problems + check_drop_duplicates(**options) + check_k_core(**options)


def _is_date_format(format: str) -> bool:
    example = datetime(2024, 3, 1, 12, 30)
    try:
        return datetime.strptime(example.strftime(format), format).year == example.year
    except ValueError:
        return False


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

    # a look into each folder and one realpath for it and each of its links, not for each picture
    parents = paths.str.replace(r"/[^/]*$", "")
    folders = parents.drop_nulls().unique().to_list()
    left = [parent for parent in folders if leaves(parent)]
    links = {parent: _links(parent) for parent in folders}
    named = paths.is_in([link for each in links.values() for link in each or ()])
    unlisted = parents.is_in([parent for parent, each in links.items() if each is None])
    linked = [path for path in paths.filter(named | unlisted).unique() if leaves(path)]
    return (parents.is_in(left) | paths.is_in(linked)).fill_null(False)


def _links(folder: str) -> list[str] | None:
    """The links in a folder that a table can name; none where it is not there.

    None where it may be entered, but not listed.
    """
    try:
        with os.scandir(folder or "/") as entries:
            names = [entry.name for entry in entries if entry.is_symlink()]
    except PermissionError:
        return None
    except OSError:
        return []
    return [f"{folder}/{name}" for name in names if not _NOT_TEXT.search(name)]


# ---- columns of the log


# Real logs have nearly all their items in the catalogue; ids that are small numbers are in it by
# chance, as users 1 to 6,040 are among films 1 to 3,952.
_MATCHES = 0.95
_MISSES = 0.05


def _refuse_swapped(
    table: Table,
    items: ItemTable,
    *,
    user: tuple[str, CodedIds],
    item: tuple[str, CodedIds],
    rows: NDArray[np.int32],
) -> None:
    """Raise DataError where the user column is the one that holds the catalogue's items."""
    named_right = is_usual("user", user[0]) and is_usual("item", item[0])
    named_wrong = is_usual("item", user[0]) and is_usual("user", item[0])
    if rows.all() and not named_wrong:
        return
    as_items = items.find(user[1].known)[user[1].codes]
    share, other = float((rows > 0).mean()), float((as_items > 0).mean())
    covered, covered_other = (len(np.unique(found[found > 0])) for found in (rows, as_items))
    if other - share >= _MISSES:
        swapped = covered_other >= covered and not (named_right and share >= 0.5)
    else:  # both fit: small numbers on either side
        swapped = named_wrong and covered_other > covered
    if swapped and other >= _MATCHES:
        raise DataError(
            f"{table.source}: user and item are swapped: column {user[0]!r} (user) holds the "
            f"catalogue's items in {other:.0%} of the events, column {item[0]!r} (item) in "
            f"{share:.0%}; set user to {item[0]!r} and item to {user[0]!r}"
        )


def _refuse_unknown(
    table: Table,
    items: ItemTable,
    rows: NDArray[np.int32],
    unknown: list[str],
    *,
    share: float | None,
) -> None:
    """Raise DataError where events of unknown items may not be dropped, or more than a share."""
    count = int((rows == 0).sum())
    told = (
        f"{table.source}: {count} of {len(rows)} events are of {len(unknown)} items that the "
        f"catalogue lacks: {shown(unknown)}"
    )
    if share is None:
        raise DataError(
            f"{told}{items.suggestion(unknown[0])}; add the items, or set unknown_items to drop"
        )
    if share * len(rows) < count < len(rows):  # of a log without any known item more is told
        raise DataError(
            f"{told}; the catalogue has such as {shown(items.ids[1:4])}: check that both files "
            f"write ids alike, and the item column; or raise max_unknown ({share})"
        )
