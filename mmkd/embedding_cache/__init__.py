"""Embedding cache: encoders' vectors of a catalogue, kept by content and encoded once."""

from mmkd.embedding_cache.cache import AbsentItem, EmbeddingCache, default_cache_folder
from mmkd.embedding_cache.errors import CacheError, EmbeddingInterrupted
from mmkd.embedding_cache.run import RunReport
from mmkd.embedding_cache.settings import EncodingSettings, share_cores
from mmkd.embedding_cache.stores import CacheEntry
from mmkd.embedding_cache.table import EmbeddingTable

__all__ = [
    "AbsentItem",
    "CacheEntry",
    "CacheError",
    "EmbeddingCache",
    "EmbeddingInterrupted",
    "EmbeddingTable",
    "EncodingSettings",
    "RunReport",
    "default_cache_folder",
    "share_cores",
]
