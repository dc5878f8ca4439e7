"""Data: a user's files to an item table, an interaction log, and a split of it into sequences."""

from mmkd.data.dataset import Dataset
from mmkd.data.interactions import InteractionLog, drop_duplicates, k_core
from mmkd.data.items import AttributeVocabulary, ItemTable
from mmkd.data.readers import load_interactions, load_items
from mmkd.data.splits import (
    SPLITS,
    Cases,
    SequenceSplit,
    cold_items,
    leave_one_out,
    ratio,
    temporal,
)
from mmkd.errors import DataError

__all__ = [
    "SPLITS",
    "AttributeVocabulary",
    "Cases",
    "DataError",
    "Dataset",
    "InteractionLog",
    "ItemTable",
    "SequenceSplit",
    "cold_items",
    "drop_duplicates",
    "k_core",
    "leave_one_out",
    "load_interactions",
    "load_items",
    "ratio",
    "temporal",
]
