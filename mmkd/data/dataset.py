"""Dataset: a user's files or frames to the catalogue, the log and its split.

Its digests tell a resumed or evaluated run of other data.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.data.ids import digest_of
from mmkd.data.interactions import InteractionLog
from mmkd.data.items import ItemTable
from mmkd.data.readers import (
    GUESS,
    Guess,
    LeftOut,
    Source,
    Table,
    check_load_interactions,
    check_load_items,
    defaults_of,
    events_of,
    guess_events,
    guess_items,
    is_sequences,
    items_of,
    load_interactions,
    load_items,
    odd_events,
    odd_items,
    read_sequences,
    read_table,
    table_of,
    write_sequences,
)
from mmkd.data.splits import SPLITS, SequenceSplit
from mmkd.data.text_template import TextTemplate
from mmkd.errors import DataError, did_you_mean, refuse

Split = Callable[[InteractionLog, int], SequenceSplit]
_COLUMN_OPTIONS = ("id", "title", "image", "attributes", "user", "item", "timestamp", "rating")
_BLOCK = 1 << 20  # numbers that are digested at once


@dataclass(frozen=True)
class Dataset:
    r"""What a run trains on and is measured by.

        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from mmkd import Dataset
        >>> root = Path(mkdtemp())
        >>> _ = (root / "items.csv").write_text("item_id,name\nA1,Teapot\nB7,Cup\nC3,Tray\n")
        >>> _ = (root / "log.csv").write_text("user_id,item_id\nada,A1\nada,C3\nada,B7\n")
        >>> data = Dataset.load(
        ...     root,
        ...     items={"path": "items.csv", "title": "name"},
        ...     interactions={"path": "log.csv", "timestamp": None},
        ...     split="leave_one_out",
        ... )
        >>> [data.items.titles[row] for row in data.split.sequence(0)]
        ['Teapot', 'Tray', 'Cup']

    Or of files or frames whose columns have usual names; what was guessed is said:

        >>> import polars as pl
        >>> shop = pl.DataFrame({"sku": ["A1", "B7", "C3"], "name": ["Teapot", "Cup", "Tray"]})
        >>> log = pl.DataFrame({"customer_id": ["ada"] * 3, "sku": ["A1", "C3", "B7"]})
        >>> data = Dataset.load(items=shop, events=log, timestamp=None)
        >>> list(data.items.text[1:]), data.notes[0]
        (['Teapot', 'Cup', 'Tray'], "items (frame): id = 'sku' (a usual name of the items' ids)")

    Attributes:
        items: The catalogue.
        log: The events that are left after filtering.
        split: The users' sequences, and what of them trains, validates and tests.
        notes: What was guessed, left out and tied, a line each.
        left_out: How many events were left out, by reason.
        options: What ``load_items`` and ``load_interactions`` were given or would have to be, as
            ``items`` and ``interactions``; of a frame there is no ``path``. ``split`` as a mapping,
            unless it is a function.
        root: The data folder.
        frames: Of the tables that were given as frames, the columns that are read: ``items``,
            ``interactions``.
    """

    items: ItemTable
    log: InteractionLog
    split: SequenceSplit
    notes: tuple[str, ...] = ()
    left_out: LeftOut = field(default=LeftOut(), compare=False)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    root: Path = field(default=Path(), compare=False)
    frames: Mapping[str, pl.DataFrame] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(
        cls,
        root: Path | str = ".",
        *,
        items: Source | Mapping[str, Any],
        events: Source | Mapping[str, Any] | None = None,
        interactions: Mapping[str, Any] | None = None,
        split: str | Mapping[str, Any] | Split = "leave_one_out",
        id: str = GUESS,
        title: str | None = GUESS,
        text: str | None = GUESS,
        image: str | None = GUESS,
        image_root: str = GUESS,
        attributes: str | None = GUESS,
        attribute_separator: str = GUESS,
        user: str = GUESS,
        item: str = GUESS,
        timestamp: str | None = GUESS,
        **filters: Any,
    ) -> Self:
        """Reads the catalogue and the log, and splits the sequences.

        Tables come in one of two forms. A path or a frame: the columns are named by the arguments
        below, and those that are not are guessed by their usual names. A mapping, as a recipe has
        it: options of the reader, its path among them; nothing is guessed.

        Args:
            root: The data folder, which paths are relative to.
            items: The catalogue: a path, a polars, pandas or Arrow frame, or options of
                `load_items`.
            events: The log: likewise, or options of `load_interactions`.
            interactions: The same as ``events``, by a recipe's name.
            split: A name of `SPLITS`; a mapping of its ``kind`` and options; or a function of one's
                own, from the log and the number of items to a `SequenceSplit`.
            id: Column of the catalogue's ids.
            title: Column of the titles to show; None shows the id.
            text: Template of the encoders' text, such as ``{name}. {about}``; None is no text.
            image: Column of the picture files; None is no pictures.
            image_root: Folder of the pictures, relative to `root`.
            attributes: Column of labels such as genres; None is no labels.
            attribute_separator: What parts the labels of a cell.
            user: Column of the log's user ids.
            item: Column of the log's item ids.
            timestamp: Column of the log's times; None takes the order of the rows.
            **filters: Further options of `load_interactions`, such as ``min_rating``,
                ``duplicates``, ``min_user_events`` or ``unknown_items``.

        Raises:
            DataError: The split or an option is unknown, a table cannot be used, a column cannot be
                told, or there is nothing to test.
        """
        named = None if callable(split) else _named_split(split)
        protocol = split if callable(split) else _protocol(named or {})
        if (events is None) == (interactions is None):
            raise DataError("give the log once, as events or as interactions")
        folder = Path(root)
        catalogue_columns = {
            "id": id,
            "title": title,
            "text": text,
            "image": image,
            "image_root": image_root,
            "attributes": attributes,
            "attribute_separator": attribute_separator,
        }
        log_columns = {"user": user, "item": item, "timestamp": timestamp}
        given = GivenTable.of("items", items, load_items, catalogue_columns)
        log_given = GivenTable.of(
            "events",
            events if events is not None else interactions,
            load_interactions,
            log_columns,
            filters,
        )
        table = given.table(folder)
        log_table = None if log_given.is_sequences else log_given.table(folder)

        of_items, guessed = guess_items(table, given.only(catalogue_columns), root=folder)
        of_items = given.options | of_items
        guessed_too: list[Guess] = []
        if log_table is None:
            of_events = log_given.named
        else:
            of_events, guessed_too = guess_events(
                log_table, log_given.only(log_columns), id=of_items["id"]
            )
            of_events = log_given.options | of_events
        refuse([*check_load_items(**of_items), *check_load_interactions(**of_events)], DataError)

        catalogue = items_of(table, root=folder, **of_items)
        notes = [*map(str, [*guessed, *guessed_too]), *odd_items(table, of_items)]
        if log_table is None:
            source = str(folder / log_given.place["path"])
            log, left_out, of_events = read_sequences(Path(source), catalogue, of_events)
        else:
            source = log_table.source
            log, left_out = events_of(log_table, catalogue, **of_events)
            notes += odd_events(log_table, of_events)
        notes += [f"{source}: {line}" for line in left_out.lines()]
        if of_events["timestamp"] is not None and (tied := log.tied()):
            notes.append(
                f"{source}: {tied:,} of {len(log):,} events ({tied / len(log):.0%}) tie "
                "in time with another of their user: the order of the rows decides"
            )
        return cls(
            items=catalogue,
            log=log,
            split=protocol(log, len(catalogue)),
            notes=tuple(notes),
            left_out=left_out,
            options={
                "items": given.place | of_items,
                "interactions": log_given.place | of_events,
                **({} if named is None else {"split": named}),
            },
            root=folder,
            frames={
                name: _only(table, options)
                for name, table, options in (
                    ("items", table, of_items),
                    ("interactions", log_table, of_events),
                )
                if table is not None and not table.is_file
            },
        )

    def save_sequences(self, path: Path | str) -> None:
        """Writes the log, user after user, to a file that ``interactions`` may name in its place.

        The file holds what is left after filtering, in the catalogue's rows. It is mapped, one copy
        for all processes of a machine, gives the same sequences, splits and digests, and is refused
        with another catalogue or other options.

        Args:
            path: A file, by custom with the suffix ``.sequences``.

        Raises:
            DataError: The log was a frame, or the file cannot be written, or is the catalogue or a
                log that is no sequence file.
        """
        if "interactions" in self.frames:
            raise DataError("a log that is a frame names no options; write it to a file first")
        log = self.options["interactions"]
        sources = [self.options["items"].get("path")]
        sources += [] if is_sequences(log["path"], log["format"]) else [log["path"]]
        if any(
            os.path.realpath(path) == os.path.realpath(self.root / one) for one in sources if one
        ):
            raise DataError(f"{path}: the data is read from this file; give another place")
        kept = {k: v for k, v in log.items() if k not in ("path", "format", "separator", "escape")}
        write_sequences(Path(path), self.log, self.items, options=kept, left_out=self.left_out)

    def digests(self) -> dict[str, str]:
        """One SHA-256 for each thing that may change by itself.

        Returns:
            ``catalogue``, ``users``, ``events`` and ``split``: name to hexadecimal digest.
        """
        split, valid, test = self.split, self.split.valid, self.split.test
        cases = (valid.user, valid.position, test.user, test.position)
        return {
            "catalogue": digest_of(self.items.ids),
            "users": digest_of(self.log.user_ids),
            "events": _of_arrays(split.items, split.offsets),
            "split": _of_arrays(split.train_end, *cases),
        }


@dataclass(frozen=True)
class GivenTable:
    """A table as it was given: where it is, and its reader's options.

    Attributes:
        name: What messages call it.
        frame: The frame, where it is one.
        place: Path, format, separator and escape, where it is a file.
        options: The other options; ``auto`` where a column is to be guessed.
        named: Those of them that were given, even if as the default.
    """

    name: str
    frame: Source | None
    place: dict[str, Any]
    options: dict[str, Any]
    named: dict[str, Any]

    @classmethod
    def of(
        cls,
        name: str,
        given: Source | Mapping[str, Any] | None,
        reader: Callable[..., object],
        columns: Mapping[str, str | None],
        more: Mapping[str, Any] | None = None,
    ) -> Self:
        """What was given, over the reader's defaults.

        Args:
            name: What messages call it.
            given: A path, a frame, or options of the reader.
            reader: Whose options these are.
            columns: Those that are guessed for a path or a frame.
            more: Further options.
        """
        known = defaults_of(reader)
        named = {key: value for key, value in columns.items() if value != GUESS} | dict(more or {})
        written = dict(given) if isinstance(given, Mapping) else {}
        for key in written | named:
            if key not in known:
                raise DataError(
                    f"{name}: {key}: unknown; the options are {', '.join(known)}"
                    f"{did_you_mean(key, known)}"
                )
        if isinstance(given, Mapping):
            if "path" not in given:
                raise DataError(f"{name}: path: required; name the file, or give a frame itself")
            options = known | written | named
        else:
            options = known | dict(columns) | named
            options["path"] = str(given) if isinstance(given, (str, Path)) else None
        place = {key: options.pop(key) for key in ("path", "format", "separator", "escape")}
        said = {k: options[k] for k in written | named if k in options and options[k] != GUESS}
        if place["path"] is not None:
            return cls(name, None, place, options, said)
        return cls(name, cast(Source, given), {}, options, said)

    @property
    def is_sequences(self) -> bool:
        """Whether it is a sequence file, which is no table."""
        return bool(self.place) and is_sequences(self.place["path"], self.place["format"])

    def table(self, root: Path) -> Table:
        """Read it; a path is relative to ``root``."""
        if self.frame is None:
            wanted = None if self.name == "items" else self._may_be_read
            return read_table(root=root, wanted=wanted, **self.place)
        return table_of(self.frame, root=root, name=self.name)

    def _may_be_read(self, column: str) -> bool:
        """Whether a column is named, or any may be guessed to be one that is not."""
        named = [self.options.get(key) for key in _COLUMN_OPTIONS]
        return column in named or GUESS in named

    def only(self, columns: Iterable[str]) -> dict[str, Any]:
        """Some of the other options."""
        return {key: self.options[key] for key in columns}


def _only(table: Table, options: Mapping[str, Any]) -> pl.DataFrame:
    """The columns that options name."""
    named = {options.get(key) for key in _COLUMN_OPTIONS}
    if options.get("text") is not None:
        named |= {*TextTemplate.parse(options["text"]).columns}
    return table.frame.select(name for name in table.frame.columns if name in named)


def _named_split(given: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": given} if isinstance(given, str) else dict(given)


def _protocol(given: Mapping[str, Any]) -> Split:
    options = dict(given)
    kind = options.pop("kind", None)
    if kind not in SPLITS:
        raise DataError(
            f"split: got kind {kind!r}, wanted one of {', '.join(SPLITS)}, or a function"
            f"{did_you_mean(str(kind), SPLITS)}"
        )
    return partial(SPLITS[kind], **options)


def _of_arrays(*arrays: NDArray[np.integer[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        for start in range(0, len(array), _BLOCK):
            digest.update(array[start : start + _BLOCK].astype("<i8").tobytes())
    return digest.hexdigest()
