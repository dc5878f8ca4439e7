"""Folders of a cache: one per encoder, described by ``card.yaml`` and ``meta.json``.

Format 1. A folder is named by the card's fingerprint, and for an encoder that is fitted on the
catalogue by a hash of the catalogue's inputs too. It has ``shards/`` (`shards.py`) and ``tables/``
(a catalogue's manifest and its FAISS index). Beside the folders, ``files.parquet`` keeps the
content keys of picture files for all encoders.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from omegaconf import OmegaConf

from mmkd.embeddings.inputs import content_key
from mmkd.embeddings.shards import (
    HALF,
    OK,
    ShardInfo,
    ShardStore,
    StoredDtype,
    read_catalogue_manifest,
    read_catalogue_shards,
    write_catalogue_manifest,
)
from mmkd.encoders.card import EncoderCard
from mmkd.errors import CacheError
from mmkd.files import write_text

FORMAT_VERSION = 1
_TABLES_KEPT = 8


class DamagedMetaError(CacheError):
    """A store's ``meta.json`` does not say what it should; nothing else depends on it."""


@dataclass(frozen=True)
class CacheEntry:
    """One encoder's store, as ``mmkd ls cache`` shows it.

    Attributes:
        card_name: Name of the encoder card.
        modality: ``"text"`` or ``"image"``.
        dtype: Precision that vectors are stored in.
        tables: Catalogues whose manifest is kept.
        items: Items of the catalogue that was opened last; 0 if none was completed yet.
        present: How many of them have a vector.
        vectors: Vectors held, for all catalogues.
        size_bytes: Size of the folder on disk.
        last_used: When a table was last opened.
        folder: The store's folder.
    """

    card_name: str
    modality: str
    dtype: str
    tables: int
    items: int
    present: int
    vectors: int
    size_bytes: int
    last_used: datetime
    folder: Path


def store_folder(
    cache: Path, card: EncoderCard, inputs: pl.DataFrame, *, dtype: StoredDtype = "float32"
) -> Path:
    """The folder of a card's vectors for a catalogue.

    Args:
        cache: The cache's folder.
        card: The encoder's card.
        inputs: Keys of the catalogue's inputs; they matter to a fitted encoder only.
        dtype: Precision that vectors are stored in.

    Returns:
        The folder; it need not exist.

    Raises:
        CacheError: The folder was written by a newer version, or its description is damaged.
    """
    name = card.fingerprint()[:16]
    if card.fitted:
        keys = inputs["key"].drop_nulls().sort()  # the order of a catalogue changes no vector
        name += "-" + content_key("\n".join(keys).encode())[:16]
    if dtype == "float16":
        name += HALF
    read_meta(cache / name)
    return cache / name


def is_fitted(store: Path) -> bool:
    """Whether a store is of an encoder fitted to one catalogue."""
    return "-" in store.name.removesuffix(HALF)


def describe_store(folder: Path, card: EncoderCard) -> None:
    """Writes ``card.yaml`` and ``meta.json`` where they are not there yet.

    Raises:
        CacheError: The folder cannot be written.
    """
    if read_meta(folder) is not None:
        return
    dumped = OmegaConf.to_yaml(OmegaConf.create(card.model_dump(mode="json", exclude_none=True)))
    write_text(folder / "card.yaml", dumped)
    meta = {
        "format_version": FORMAT_VERSION,
        "card": card.name,
        "modality": card.modality,
        "dtype": ShardStore(folder).dtype,
    }
    write_text(folder / "meta.json", json.dumps(meta, indent=1) + "\n")


def record_table(folder: Path, statuses: pl.DataFrame, shards: Mapping[int, ShardInfo]) -> str:
    """Writes a complete catalogue's manifest, or marks it as used.

    A folder that cannot be written is no error: reading needs none of this.

    Args:
        folder: The store's folder.
        statuses: A row per item.
        shards: The shards that hold its vectors.

    Returns:
        The table's key.
    """
    identity = statuses.select("item_id", "key", "status").write_csv()
    name = content_key(identity.encode("utf-8", "surrogatepass"))[:16]
    manifest = folder / "tables" / name / "manifest.parquet"
    try:
        # a shard encoded again has its vectors at other places
        if read_catalogue_shards(manifest) != shards or _damaged(manifest):
            write_catalogue_manifest(manifest, statuses, shards)
            _forget_old_tables(folder / "tables")
        os.utime(manifest)
    except (CacheError, OSError):
        pass
    return f"{folder.name}.{name}"


def table_folder(cache: Path, key: str) -> Path | None:
    """The folder of a table's manifest and index; None if this cache has no such table."""
    store, _, name = key.partition(".")
    named = store.replace("-", "").isalnum() and name.isalnum()
    folder = cache / store / "tables" / name
    return folder if named and folder.is_dir() else None


def list_stores(cache: Path) -> list[CacheEntry]:
    """Describes the stores of a cache, the last used first; an unreadable one is left out."""
    entries = []
    for path in cache.glob("*/meta.json"):
        with suppress(CacheError, FileNotFoundError):  # damaged, or removed just now
            if (meta := read_meta(path.parent)) is not None:
                entries.append(_entry(path.parent, str(meta["card"]), str(meta["modality"])))
    return sorted(entries, key=lambda entry: entry.last_used, reverse=True)


def _entry(folder: Path, card_name: str, modality: str) -> CacheEntry:
    manifests = table_manifests(folder / "tables")
    statuses = read_catalogue_manifest(manifests[0], ["status"]) if manifests else None
    return CacheEntry(
        card_name=card_name,
        modality=modality,
        dtype=ShardStore(folder).dtype,
        tables=len(manifests),
        items=0 if statuses is None else len(statuses),
        present=0 if statuses is None else int((statuses["status"] == OK).sum()),
        vectors=sum(shard.rows for shard in ShardStore(folder).contents().shards.values()),
        size_bytes=store_size(folder),
        last_used=datetime.fromtimestamp(last_use(folder), tz=UTC),
        folder=folder,
    )


def last_use(store: Path) -> float:
    """When a table of a store was last opened, else when the store was made; Unix seconds."""
    manifests = table_manifests(store / "tables")
    return (manifests[0] if manifests else store / "meta.json").stat().st_mtime


def store_size(folder: Path) -> int:
    """Bytes on disk; what another process removes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def read_meta(folder: Path) -> dict[str, object] | None:
    """A store's ``meta.json``; None where there is none.

    Raises:
        DamagedMetaError: It is damaged.
        CacheError: It is of a newer format, or cannot be read.
    """
    path = folder / "meta.json"
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        version = int(meta["format_version"])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheError(f"{path}: cannot be read ({error}); nothing is changed") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedMetaError(
            f"{path}: damaged ({error}); delete this file, the next run writes it again"
        ) from error
    if version > FORMAT_VERSION:
        raise CacheError(
            f"{folder}: cache format {version}, this version of mmkd reads up to {FORMAT_VERSION}; "
            "upgrade mmkd, or choose another folder with MMKD_CACHE"
        )
    return dict(meta)


def _damaged(manifest: Path) -> bool:
    return read_catalogue_manifest(manifest, ["status"]) is None


def _forget_old_tables(tables: Path) -> None:
    """Keeps the manifests and indexes used last; they can be made again from the shards."""
    for manifest in table_manifests(tables)[_TABLES_KEPT:]:
        shutil.rmtree(manifest.parent, ignore_errors=True)


def table_manifests(tables: Path) -> list[Path]:
    """Catalogue manifests, the last used first."""
    found = []
    for path in tables.glob("*/manifest.parquet"):
        with suppress(FileNotFoundError):  # another process forgot it just now
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]
