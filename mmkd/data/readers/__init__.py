"""Readers: a user's files and frames to an ItemTable and an InteractionLog."""

from mmkd.data.interactions import LeftOut
from mmkd.data.readers.guessing import GUESS, Guess, guess_events, guess_items, usual_column
from mmkd.data.readers.load import (
    check_load_interactions,
    check_load_items,
    defaults_of,
    events_of,
    items_of,
    load_interactions,
    load_items,
)
from mmkd.data.readers.oddities import odd_events, odd_items
from mmkd.data.readers.sequences import read_sequences, write_sequences
from mmkd.data.readers.tables import Format, Source, Table, is_sequences, read_table, table_of

__all__ = [
    "GUESS",
    "Format",
    "Guess",
    "LeftOut",
    "Source",
    "Table",
    "check_load_interactions",
    "check_load_items",
    "defaults_of",
    "events_of",
    "guess_events",
    "guess_items",
    "is_sequences",
    "items_of",
    "load_interactions",
    "load_items",
    "odd_events",
    "odd_items",
    "read_sequences",
    "read_table",
    "table_of",
    "usual_column",
    "write_sequences",
]
