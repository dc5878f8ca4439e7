"""Readers: a user's files to an ItemTable and an InteractionLog."""

from mmkd.data.readers.load import (
    check_load_interactions,
    check_load_items,
    load_interactions,
    load_items,
)
from mmkd.data.readers.tables import Format, Table, read_table

__all__ = [
    "Format",
    "Table",
    "check_load_interactions",
    "check_load_items",
    "load_interactions",
    "load_items",
    "read_table",
]
