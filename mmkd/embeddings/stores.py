"""Folders of a cache: one per encoder, described by ``card.yaml`` and ``meta.json``.

Format 1. A folder is named by the card's fingerprint, and for an encoder that is fitted on the
catalogue by a hash of the catalogue's inputs too. It has ``shards/`` (`mmkd.embeddings.shards`) and
``tables/``: the manifest of each catalogue that was opened, a row per item with the place of its
vector, and its FAISS index. Beside the folders, ``files.parquet`` keeps the content keys of picture
files for all encoders.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from omegaconf import OmegaConf

from mmkd.column_files import write_parquet_parts
from mmkd.embeddings.inputs import text_key
from mmkd.embeddings.shards import (
    HALF,
    OK,
    ShardInfo,
    ShardStore,
    StoredDtype,
    read_parquet,
    reading,
)
from mmkd.encoders import EncoderCard
from mmkd.errors import CacheError
from mmkd.files import read_json, remove_temporaries, write_sealed_json, write_text

FORMAT_VERSION = 1
_TABLES_KEPT = 8
_ROWS_AT_ONCE = 1_000_000


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


def list_stores(cache: Path) -> list[CacheEntry]:
    """Describes the stores of a cache, the last used first; an unreadable one is left out."""
    entries = []
    for folder in store_folders(cache):
        with suppress(CacheError, FileNotFoundError):  # damaged, or removed just now
            if (meta := read_meta(folder)) is None:
                continue
            manifests, store = table_manifests(folder), ShardStore(folder)
            statuses = read_manifest(manifests[0], ["status"]) if manifests else None
            entry = CacheEntry(
                card_name=meta["card"],
                modality=meta["modality"],
                dtype=store.dtype,
                tables=len(manifests),
                items=0 if statuses is None else len(statuses),
                present=0 if statuses is None else int((statuses["status"] == OK).sum()),
                vectors=sum(shard.rows for shard in store.shards().values()),
                size_bytes=size_bytes(folder),
                last_used=datetime.fromtimestamp(last_use(folder), tz=UTC),
                folder=folder,
            )
            entries.append(entry)
    return sorted(entries, key=lambda entry: entry.last_used, reverse=True)


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
        CacheError: The folder was written by a newer version.
    """
    name = card.fingerprint()[:16]
    if card.fitted:
        keys = inputs["key"].drop_nulls().sort()  # the order of a catalogue changes no vector
        name += "-" + text_key("\n".join(keys))[:16]
    if dtype == "float16":
        name += HALF
    with suppress(DamagedMetaError):  # it is written again
        read_meta(cache / name)
    return cache / name


def is_fitted(store: Path) -> bool:
    """Whether a store is of an encoder fitted to one catalogue."""
    return "-" in store.name.removesuffix(HALF)


def store_folders(cache: Path) -> list[Path]:
    """The stores of a cache that are described, by name."""
    return sorted(path.parent for path in cache.glob("*/meta.json"))


def read_meta(store: Path) -> dict[str, str] | None:
    """The ``card`` and ``modality`` that a store's ``meta.json`` names; None where there is none.

    Raises:
        DamagedMetaError: It is damaged.
        CacheError: It is of a newer format, or cannot be read.
    """
    path = store / "meta.json"
    with reading(path):
        try:
            meta = read_json(path, "format_version")
            if (version := int(meta["format_version"])) <= FORMAT_VERSION:
                return {name: str(meta[name]) for name in ("card", "modality")}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedMetaError(
                f"{path}: damaged ({error}); mmkd embed writes it again"
            ) from error
    raise CacheError(
        f"{store}: cache format {version}, this version of mmkd reads up to {FORMAT_VERSION}; "
        "upgrade mmkd, or choose another folder with MMKD_CACHE"
    )


def describe_store(store: Path, card: EncoderCard) -> None:
    """Writes ``card.yaml`` and ``meta.json`` where they are not there or damaged.

    Raises:
        OSError: They cannot be written.
    """
    with suppress(DamagedMetaError):
        if read_meta(store) is not None:
            return
    dumped = OmegaConf.to_yaml(OmegaConf.create(card.model_dump(mode="json", exclude_none=True)))
    write_text(store / "card.yaml", dumped)
    meta = {
        "format_version": FORMAT_VERSION,
        "card": card.name,
        "modality": card.modality,
        "dtype": ShardStore(store).dtype,
    }
    write_sealed_json(store / "meta.json", meta)


def last_use(store: Path) -> float:
    """When a table of a store was last opened, else when the store was made; Unix seconds."""
    manifests = table_manifests(store)
    return (manifests[0] if manifests else store / "meta.json").stat().st_mtime


def size_bytes(folder: Path) -> int:
    """Size on disk; what another process removes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def record_table(store: Path, statuses: pl.DataFrame, shards: Mapping[int, ShardInfo]) -> str:
    """Writes a complete catalogue's manifest, or marks it as used.

    A folder that cannot be written is no error: reading needs none of this.

    Args:
        store: The store's folder.
        statuses: A row per item, of at least one, with its id, key, status, reason and place.
        shards: The shards that the places are in, so that a place is known to be of these bytes.

    Returns:
        The table's key.
    """
    identity = hashlib.sha256()  # of the catalogue as CSV, some rows at a time
    for number, part in enumerate(statuses.iter_slices(_ROWS_AT_ONCE)):
        text = part.select("item_id", "key", "status").write_csv(include_header=not number)
        identity.update(text.encode())
    name = identity.hexdigest()[:16]
    manifest = store / "tables" / name / "manifest.parquet"
    with suppress(CacheError, OSError):
        # a shard encoded again has its vectors at other places; a damaged manifest has none
        if manifest_shards(manifest) != shards:
            remove_temporaries(manifest.parent)
            used = {str(number): astuple(info) for number, info in sorted(shards.items())}
            parts = statuses.iter_slices(_ROWS_AT_ONCE)
            write_parquet_parts(manifest, parts, {"mmkd.shards": used})
            for old in table_manifests(store)[_TABLES_KEPT:]:  # they can be made again
                shutil.rmtree(old.parent, ignore_errors=True)
        os.utime(manifest)
    return f"{store.name}.{name}"


def table_folder(cache: Path, key: str) -> Path | None:
    """The folder of a table's manifest and index; None if this cache has no such table."""
    store, _, name = key.partition(".")
    named = store.replace("-", "").isalnum() and name.isalnum()
    folder = cache / store / "tables" / name
    return folder if named and folder.is_dir() else None


def table_manifests(store: Path) -> list[Path]:
    """Manifests of a store's catalogues, the last used first."""
    found = []
    for path in store.glob("tables/*/manifest.parquet"):
        with suppress(FileNotFoundError):  # another process forgot it just now
            found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found, reverse=True)]


def read_manifest(path: Path, columns: Sequence[str] | None = None) -> pl.DataFrame | None:
    """A catalogue's manifest; None if it is absent or damaged."""
    read = read_parquet(path, columns)
    return None if read is None else read[0]


def manifest_shards(path: Path) -> dict[int, ShardInfo]:
    """The shards that a manifest has places in; none if it is absent, damaged or older."""
    read = read_parquet(path, ())
    try:
        used = read[1]["mmkd.shards"] if read else {}
        return {int(number): ShardInfo(*info) for number, info in used.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
