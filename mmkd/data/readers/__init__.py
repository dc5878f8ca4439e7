"""Readers: a user's files and frames to an ItemTable and an InteractionLog."""

from mmkd.data.readers.guessing import GUESS, Guess, guess_events, guess_items, usual_column
from mmkd.data.readers.load import (
    LeftOut,
    check_load_interactions,
    check_load_items,
    events_of,
    items_of,
    load_interactions,
    load_items,
)
from mmkd.data.readers.oddities import odd_events, odd_items
from mmkd.data.readers.tables import Format, Source, Table, read_table, table_of

__all__ = [
    "GUESS",
    "Format",
    "Guess",
    "LeftOut",
    "Source",
    "Table",
    "check_load_interactions",
    "check_load_items",
    "events_of",
    "guess_events",
    "guess_items",
    "items_of",
    "load_interactions",
    "load_items",
    "odd_events",
    "odd_items",
    "read_table",
    "table_of",
    "usual_column",
]
