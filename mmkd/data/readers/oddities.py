"""What of a table is odd but not wrong: a line each, with a count and an example.

Blanks around ids are part of them, the words ``nan``, ``null`` and ``None`` are text, and a list
that is written as text is text too, but for labels. Each may be meant; each is often a slip of what
wrote the file.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.data.ids import CodedIds, ids_as_text
from mmkd.data.readers.columns import written_lists
from mmkd.data.readers.tables import Table
from mmkd.data.text_template import TextTemplate
from mmkd.errors import shown

_WORD = "are taken as text; leave the cell empty for none"
_WORDS = ("nan", "null", "none", "<na>", "n/a", "undefined")


def odd_items(table: Table, options: Mapping[str, Any]) -> Iterator[str]:
    """Of a catalogue whose columns these options of ``load_items`` name."""
    ids = ids_as_text(table.frame[options["id"]])
    if ids is not None:
        yield from _odd_ids(table, "id", options["id"], ids)
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
        name = options[setting]
        ids = table.coded(name, setting=setting)
        if isinstance(ids, CodedIds):
            counts = np.bincount(ids.codes[ids.codes >= 0], minlength=len(ids.known))
            yield from _odd_ids(table, setting, name, ids.known, counts)


def _odd_ids(
    table: Table, setting: str, name: str, ids: pl.Series, counts: NDArray[np.int64] | None = None
) -> Iterator[str]:
    """Of ids, each with how often it occurs; by default as often as it is among them."""
    stripped = ids.str.strip_chars()
    blank = "have blanks around them, which are part of the id"
    yield from _odd(table, setting, name, ids, stripped != ids, blank, counts)
    if table.frame.schema[name] == pl.String:
        words = stripped.str.to_lowercase().is_in(_WORDS)
        yield from _odd(table, setting, name, ids, words, _WORD, counts)


def _odd_words(table: Table, setting: str, name: str) -> Iterator[str]:
    column = table.frame[name]
    if column.dtype == pl.String:
        words = column.str.strip_chars().str.to_lowercase().is_in(_WORDS)
        yield from _odd(table, setting, name, column, words, _WORD)


def _odd(
    table: Table,
    setting: str,
    name: str,
    cells: pl.Series,
    odd: pl.Series,
    what: str,
    counts: NDArray[np.int64] | None = None,
) -> Iterator[str]:
    odd = odd.fill_null(False)
    if odd.any():
        count = int(odd.sum() if counts is None else counts[odd.to_numpy()].sum())
        yield _told(table, setting, name, cells.filter(odd), what, count)


def _odd_lists(table: Table, setting: str, name: str) -> Iterator[str]:
    column = table.frame[name]
    if column.dtype != pl.String:
        return
    written = written_lists(column.str.strip_chars()).is_not_null()
    if written.any():
        read = "their parts are the labels" if setting == "attributes" else "they are taken as text"
        yield from _odd(table, setting, name, column, written, f"are lists as text: {read}")


def _told(table: Table, setting: str, name: str, cells: pl.Series, what: str, count: int) -> str:
    examples = shown(cells.unique(maintain_order=True).head(2).to_list())
    return (
        f"{table.source}: {count:,} of {len(table):,} cells of column {name!r} ({setting}), "
        f"such as {examples}, {what}"
    )
