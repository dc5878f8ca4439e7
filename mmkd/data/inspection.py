"""Inspection: a recipe's data section, read and judged before anything is trained on it.

From the options of the readers to every problem that can be told at once, or to the facts of what
would train: how many users, items and events, what is left out and why, which texts and pictures
are missing. Nothing is written and no picture is opened.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mmkd.data.dataset import Dataset, GivenTable, Split
from mmkd.data.items import ItemTable
from mmkd.data.readers import (
    Table,
    is_sequences,
    items_of,
    load_interactions,
    load_items,
    usual_column,
)
from mmkd.data.readers.columns import read_codes, read_numbers, read_timestamps
from mmkd.data.splits import SPLITS
from mmkd.data.text_template import TextTemplate
from mmkd.errors import DataError, shown

Made = TypeVar("Made")
# numbers of today's dates in milliseconds, microseconds and nanoseconds
_UNITS = ((1e17, "ns"), (1e14, "us"), (1e11, "ms"))
_FIRST_DATE, _LAST_DATE = 631_152_000, 4_102_444_800  # 1990 and 2100, in seconds


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        problems: Pairs of section (``items``, ``interactions`` or ``split``) and message.
        notes: A line each for what is left out, missing, shared or tied.
        facts: Counts by name; empty where there is a problem.
        data: The data, where there is no problem.
    """

    problems: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    data: Dataset | None = None


def inspect_data(
    root: Path | str,
    *,
    items: Mapping[str, Any],
    interactions: Mapping[str, Any],
    split: str | Mapping[str, Any] | Split = "leave_one_out",
) -> Inspection:
    r"""Reads the two tables as ``Dataset.load`` would, and tells all that is wrong at once.

        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from mmkd.data.inspection import inspect_data
        >>> root = Path(mkdtemp())
        >>> _ = (root / "items.csv").write_text("sku,name\nA1,Teapot\nB7,Cup\nC3,Tray\n")
        >>> _ = (root / "log.csv").write_text("user_id,item_id\nada,A1\nada,C3\nada,B7\n")
        >>> found = inspect_data(
        ...     root,
        ...     items={"path": "items.csv", "title": "names"},
        ...     interactions={"path": "log.csv"},
        ... )
        >>> [(section, message.partition(";")[0].partition(": ")[2])
        ...     for section, message in found.problems]
        [('items', "no column 'item_id' (id)"), ('items', "no column 'names' (title)"),
         ('interactions', "no column 'timestamp' (timestamp)")]

    Args:
        root: The data folder.
        items: Options of ``load_items``.
        interactions: Options of ``load_interactions``.
        split: As for ``Dataset.load``.

    Returns:
        The problems, or the data and its facts.
    """
    folder, problems = Path(root), _Problems()
    catalogue = _catalogue(folder, items, problems)
    _log(folder, interactions, problems)
    if problems.found or catalogue is None:
        return Inspection(problems=tuple(problems.found))
    data = problems.tried(
        "interactions",
        lambda: Dataset.load(folder, items=items, interactions=interactions, split=split),
    )
    if data is None:
        [(section, message)] = problems.found
        part = "split" if message.startswith(("split", *SPLITS)) else section
        return Inspection(problems=((part, message),))
    facts, notes = _facts(data), list(data.notes)
    notes += _notes_of_items(data.items, facts)
    notes += _notes_of_time(data, data.options["interactions"]["timestamp"])
    missing, named = facts["pictures_missing"], facts["pictures"]
    if named and missing == named:
        first = next(path for path in data.items.image_path if path is not None)
        problems.found.append(
            (
                "items",
                f"none of the {named:,} pictures is there, the first would be {first}; correct "
                "image or image_root",
            )
        )
        return Inspection(problems=tuple(problems.found))
    return Inspection(notes=tuple(notes), facts=facts, data=data)


class _Problems:
    """Problems by section; what raises one does not hide the next."""

    def __init__(self) -> None:
        self.found: list[tuple[str, str]] = []

    def tried(self, section: str, what: Callable[[], Made]) -> Made | None:
        """What was made, or None and one problem more."""
        try:
            return what()
        except DataError as error:
            self.found.append((section, str(error)))
            return None

    def table(
        self, section: str, root: Path, options: Mapping[str, Any], reader: Callable[..., object]
    ) -> tuple[Table, dict[str, Any]] | None:
        """The table and its reader's other options; or None and one problem more."""

        def read() -> tuple[Table, dict[str, Any]]:
            given = GivenTable.of(section, options, reader, {})
            return given.table(root), given.options

        return self.tried(section, read)

    def columns(self, section: str, table: Table, named: Mapping[str, str | None]) -> bool:
        """Whether all named columns are there; a problem for each that is not."""
        all_there = True
        for setting, name in named.items():
            if name is None or self._has(section, table, setting.partition(" ")[0], name):
                continue
            all_there = False
        return all_there

    def _has(self, section: str, table: Table, setting: str, name: str) -> bool:
        try:
            table.require(name, setting=setting)
        except DataError as error:
            usual = usual_column(setting, table.frame.columns)
            hint = f"; {setting}: {usual} looks right" if usual and "mean" not in str(error) else ""
            self.found.append((section, f"{error}{hint}"))
            return False
        return True


def _catalogue(root: Path, options: Mapping[str, Any], problems: _Problems) -> ItemTable | None:
    found = problems.table("items", root, options, load_items)
    if found is None:
        return None
    table, given = found
    named = {key: given[key] for key in ("id", "title", "image", "attributes")}
    if given["text"] is not None:
        named |= {f"text {name}": name for name in TextTemplate.parse(given["text"]).columns}
    if not problems.columns("items", table, named):
        return None
    return problems.tried("items", lambda: items_of(table, root=root, **given))


def _log(root: Path, options: Mapping[str, Any], problems: _Problems) -> None:
    if is_sequences(str(options.get("path", "")), options.get("format", "auto")):
        return  # it was checked when it was written
    found = problems.table("interactions", root, options, load_interactions)
    if found is None:
        return
    table, given = found
    named = {key: given[key] for key in ("user", "item", "timestamp", "rating")}
    if not problems.columns("interactions", table, named):
        return
    readers: dict[str, Callable[..., object]] = {
        "user": read_codes,
        "item": read_codes,
        "timestamp": partial(
            read_timestamps, unit=given["timestamp_unit"], format=given["timestamp_format"]
        ),
        "rating": read_numbers,
    }
    for setting, reader in readers.items():
        if (name := named[setting]) is not None:
            problems.tried("interactions", partial(reader, table, name, setting=setting))


def _facts(data: Dataset) -> dict[str, Any]:
    items, log, split, out = data.items, data.log, data.split, data.left_out
    texts = items.frame["text"][1:].drop_nulls()
    paths = [path for path in items.image_path if path is not None]
    return {
        "users": split.user_count,
        "items": len(items),
        "events": len(log),
        "items_without_events": len(items) - len(np.unique(log.item)),
        "dropped": {
            "unknown_items": out.unknown,
            "low_ratings": out.rated_low,
            "duplicates": out.repeated,
            "k_core": out.rare,
            "users": out.users,
        },
        "tied_events": log.tied(),
        "train_events": int(split.is_train().sum()),
        "valid_cases": len(split.valid),
        "test_cases": len(split.test),
        "valid_cases_cold": int(split.is_cold(split.valid).sum()),
        "test_cases_cold": int(split.is_cold(split.test).sum()),
        "texts": len(texts),
        "texts_shared": int(texts.is_duplicated().sum()),
        "pictures": len(paths),
        "pictures_missing": sum(not path.is_file() for path in paths),
        "first_event": {
            "user": log.user_ids[log.user[0]],
            "item": items.ids[log.item[0]],
            "title": items.titles[log.item[0]],
            "timestamp": _date(float(log.timestamp[0])),
        },
        "from": _date(float(log.timestamp.min())),
        "until": _date(float(log.timestamp.max())),
    }


def _notes_of_items(items: ItemTable, facts: Mapping[str, Any]) -> Iterator[str]:
    count = len(items)
    if idle := facts["items_without_events"]:
        yield f"{idle:,} of {count:,} items have no event; they stay, as cold candidates"
    if facts["texts"] and (lacking := count - facts["texts"]):
        yield f"{lacking:,} of {count:,} items have no text"
    if shared := facts["texts_shared"]:
        yield f"{shared:,} of {count:,} items share another's text"
    if facts["pictures"] and (lacking := count - facts["pictures"]):
        yield f"{lacking:,} of {count:,} items name no picture"
    if missing := facts["pictures_missing"]:
        lost = [str(p) for p in items.image_path if p is not None and not p.is_file()]
        yield f"{missing:,} of {facts['pictures']:,} pictures are not there: {shown(lost, limit=2)}"


def _notes_of_time(data: Dataset, column: str | None) -> Iterator[str]:
    if column is None:
        yield "timestamp is null: the order of the rows is taken as the order in time"
        return
    middle = float(np.median(data.log.timestamp))
    unit = next((name for least, name in _UNITS if middle >= least), None)
    if unit is not None:
        yield (
            f"timestamps such as {middle:.0f} look like {unit}; with timestamp_unit: {unit} they "
            "become seconds, which dates can be compared with"
        )
    if len(data.log) > 1 and data.log.timestamp.min() == data.log.timestamp.max():
        yield f"all timestamps are {middle:g}: they order nothing"


def _date(timestamp: float) -> float | str:
    """A number of seconds that is a date of our time, as one; any other number as it is."""
    if _FIRST_DATE <= timestamp < _LAST_DATE:
        return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return int(timestamp) if timestamp.is_integer() else timestamp
