"""From items' places to an `EmbeddingTable`: of a catalogue just completed, or recorded earlier.

Neither reads vectors: `StoredVectors` does when it is indexed.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from mmkd.embedding_cache.errors import CacheError
from mmkd.embedding_cache.manifest import OK, read_catalogue_manifest, read_catalogue_shards
from mmkd.embedding_cache.shards import ShardStore
from mmkd.embedding_cache.stores import read_meta, record_table, table_folder
from mmkd.embedding_cache.table import EmbeddingTable
from mmkd.embedding_cache.vectors import ShardFile, StoredVectors
from mmkd.encoders import EncoderCard


def new_table(
    card: EncoderCard, folder: Path, statuses: pl.DataFrame, files: Mapping[int, ShardFile]
) -> EmbeddingTable:
    """The table of a catalogue whose every item has a status; its manifest is recorded.

    Args:
        card: The encoder's card.
        folder: The store's folder.
        statuses: A row per item (`mmkd.embedding_cache.planning.item_statuses`).
        files: The shards that hold its vectors, found sound.

    Raises:
        CacheError: No item has a vector.
    """
    if not (statuses["status"] == OK).any():
        counts = statuses["reason"].value_counts(sort=True).rows()[:3]
        told = "; ".join(f"{count} x {reason}" for reason, count in counts) or "no items"
        raise CacheError(
            f"card {card.name}: none of {len(statuses)} items has a vector ({told}); check the "
            f"catalogue's {card.modality} column, or use a cache with retry_failed=True"
        )
    key = record_table(folder, statuses, {number: file.info for number, file in files.items()})
    return _assembled(statuses, files, card.name, card.modality, key)


def open_table(cache: Path, key: str) -> EmbeddingTable:
    """Opens a recorded table.

    Args:
        cache: The cache's folder.
        key: The table's key.

    Raises:
        CacheError: It is not there, of a newer version, or its shards were removed or damaged.
    """
    folder = table_folder(cache, key)
    store = cache / key.partition(".")[0]
    meta = read_meta(store) if folder else None
    manifest = (folder or store) / "manifest.parquet"
    places = read_catalogue_manifest(manifest, ["status", "shard", "shard_row"])
    shards = read_catalogue_shards(manifest)
    if meta is None or places is None or not shards:
        raise CacheError(f"table {key} is not in {cache}; make it with table()")
    files, damaged = ShardStore(store).open(shards, shards)
    if damaged:
        raise CacheError(
            f"table {key}: {len(damaged)} of {len(shards)} shards in {store} were removed or "
            "changed; make it again with table(), or run mmkd embed"
        )
    try:
        os.utime(manifest)
    except OSError:
        pass
    return _assembled(places, files, str(meta["card"]), str(meta["modality"]), key)


def _assembled(
    statuses: pl.DataFrame, files: Mapping[int, ShardFile], card: str, modality: str, key: str
) -> EmbeddingTable:
    """A table of rows 1..I in the order of the statuses."""
    shards = np.full(len(statuses) + 1, -1, np.int32)
    shard_rows = np.full(len(statuses) + 1, -1, np.int32)
    held = pl.col("status") == OK
    for name, column in (("shard", shards), ("shard_row", shard_rows)):
        column[1:] = statuses.select(pl.when(held).then(name).otherwise(-1))[:, 0].to_numpy()
    dim = next(iter(files.values())).info.dim
    vectors = StoredVectors(files, shards, shard_rows, dim=dim)
    return EmbeddingTable(vectors, shards >= 0, card, modality, key)
