"""What of a table is odd but not wrong: a line each, with a count and an example.

Blanks around ids are part of them, the words ``nan``, ``null`` and ``None`` are text, and a list
that is written as text is text too, but for labels. Each may be meant; each is often a slip of what
wrote the file.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from mmkd.data.ids import ids_as_text
from mmkd.data.readers.columns import written_lists
from mmkd.data.readers.tables import Table
from mmkd.data.text_template import TextTemplate
from mmkd.errors import shown

_WORDS = ("nan", "null", "none", "<na>", "n/a", "undefined")


def odd_items(table: Table, options: Mapping[str, Any]) -> Iterator[str]:
    """Of a catalogue whose columns these options of ``load_items`` name."""
    yield from _odd_ids(table, "id", options["id"])
    template = options.get("text")
    columns = (
        {} if template is None else dict.fromkeys(TextTemplate.parse(template).columns, "text")
    )
    columns |= {options[key]: key for key in ("title", "image", "attributes") if options.get(key)}
    for name, setting in columns.items():
        yield from _odd_words(table, setting, name)
        yield from _odd_lists(table, setting, name)


def odd_events(table: Table, options: Mapping[str, Any]) -> Iterator[str]:
    """Of a log whose columns these options of ``load_interactions`` name."""
    for setting in ("user", "item"):
        yield from _odd_ids(table, setting, options[setting])


def _odd_ids(table: Table, setting: str, name: str) -> Iterator[str]:
    ids = ids_as_text(table.frame[name])
    if ids is None:
        return
    blanks = ids.filter(ids.str.strip_chars() != ids)
    if len(blanks):
        yield _told(
            table, setting, name, blanks, "have blanks around them, which are part of the id"
        )
    yield from _odd_words(table, setting, name)


def _odd_words(table: Table, setting: str, name: str) -> Iterator[str]:
    column = table.frame[name]
    if column.dtype != pl.String:
        return
    words = column.filter(column.str.strip_chars().str.to_lowercase().is_in(_WORDS))
    if len(words):
        yield _told(table, setting, name, words, "are taken as text; leave the cell empty for none")


def _odd_lists(table: Table, setting: str, name: str) -> Iterator[str]:
    column = table.frame[name]
    if column.dtype != pl.String:
        return
    written = pl.Series([one is not None for one in written_lists(column.str.strip_chars())])
    if written.any():
        read = "their parts are the labels" if setting == "attributes" else "they are taken as text"
        yield _told(table, setting, name, column.filter(written), f"are lists as text: {read}")


def _told(table: Table, setting: str, name: str, cells: pl.Series, what: str) -> str:
    examples = shown(cells.unique(maintain_order=True).head(2).to_list())
    return (
        f"{table.source}: {len(cells):,} of {len(table):,} cells of column {name!r} ({setting}), "
        f"such as {examples}, {what}"
    )
