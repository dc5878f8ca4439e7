"""Embedding cache: encoders' vectors of a catalogue, kept by content and encoded once."""

from mmkd.embeddings.cache import AbsentItem, EmbeddingCache, default_cache_folder
from mmkd.embeddings.cluster import RayActors
from mmkd.embeddings.encode import EncodingSettings, RunReport, share_cores
from mmkd.embeddings.stores import CacheEntry
from mmkd.embeddings.table import EmbeddingTable
from mmkd.errors import CacheError, EmbeddingInterrupted

__all__ = [
    "AbsentItem",
    "CacheEntry",
    "CacheError",
    "EmbeddingCache",
    "EmbeddingInterrupted",
    "EmbeddingTable",
    "EncodingSettings",
    "RayActors",
    "RunReport",
    "default_cache_folder",
    "share_cores",
]
