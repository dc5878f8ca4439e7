"""Readers: a user's files to an ItemTable and an InteractionLog."""

from mmkd.data.readers.interactions import load_interactions
from mmkd.data.readers.items import load_items
from mmkd.data.readers.tables import Format, Table, read_table

__all__ = ["Format", "Table", "load_interactions", "load_items", "read_table"]
