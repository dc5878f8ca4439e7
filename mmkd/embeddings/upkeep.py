"""Upkeep of a cache: every checksum verified, damage removed, and what nothing uses freed.

From a cache's folder to findings. Nothing is removed while another process writes to the store.
"""

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mmkd.embeddings.index import index_damage, remove_index
from mmkd.embeddings.shards import ShardInfo, ShardStore, read_parquet, writing
from mmkd.embeddings.stores import (
    DamagedMetaError,
    is_fitted,
    last_use,
    manifest_shards,
    read_manifest,
    read_meta,
    size_bytes,
    store_folders,
    table_manifests,
)
from mmkd.errors import CacheError


@dataclass(frozen=True)
class Damage:
    """A damaged file.

    Attributes:
        path: The file.
        fault: What is wrong with it.
    """

    path: Path
    fault: str


@dataclass(frozen=True)
class Waste:
    """What can be freed.

    Attributes:
        path: A store's folder, a table's folder or a shard's vectors.
        why: Why nothing needs it.
        size_bytes: What it takes on disk.
        in_use: Whether another process is writing to its store: it is then left alone.
    """

    path: Path
    why: str
    size_bytes: int
    in_use: bool = False


def verify_cache(
    cache: Path, *, repair: bool = False, progress: Callable[[int, int], None] | None = None
) -> tuple[int, list[Damage]]:
    """Reads every byte of every shard, and of the manifests, indexes and pictures' keys.

    Args:
        cache: The cache's folder.
        repair: Remove what is damaged, so that the next run makes it again.
        progress: Called with (done, of) shards.

    Returns:
        The number of shards, and what is damaged.

    Raises:
        CacheError: There is no such folder, a store is of a newer format, or something cannot be
            read or removed.
    """
    stores = {folder: ShardStore(folder) for folder in _stores(cache)}
    shards = {
        folder: {int(path.stem) for path in store.files()} for folder, store in stores.items()
    }
    total, done = sum(map(len, shards.values())), 0
    damage: list[Damage] = []
    for folder, store in stores.items():
        found: list[Damage] = []
        try:
            read_meta(folder)
        except DamagedMetaError:
            found.append(Damage(folder / "meta.json", "damaged"))
        sound = store.shards()
        for number in sorted(shards[folder]):
            if fault := _shard_fault(store, number, sound):
                found.append(Damage(store.path(number), fault))
            done += 1
            if progress is not None:
                progress(done, total)
        for manifest in table_manifests(folder):
            if read_manifest(manifest) is None:
                found.append(Damage(manifest, "unreadable"))
            if fault := index_damage(manifest.parent):
                found.append(Damage(manifest.parent / "index.json", fault))
        if found and repair:
            _repair(store, found)
        damage.extend(found)
    keys = cache / "files.parquet"
    if keys.exists() and read_parquet(keys) is None:
        damage.append(Damage(keys, "unreadable"))
        if repair:
            with writing(keys):
                keys.unlink(missing_ok=True)
    return total, damage


def find_waste(
    cache: Path,
    kept: Collection[str],
    *,
    older_than_days: float | None = None,
    unreferenced: bool = False,
) -> list[Waste]:
    """Finds what can be freed.

    Args:
        cache: The cache's folder.
        kept: Fingerprints of the cards in use; stores of others are waste.
        older_than_days: Only what was last used longer ago; then also what kept stores have for
            catalogues not used since: their tables, and encoders fitted to them.
        unreferenced: Also shards of which no kept table has a vector, unless they were written
            after all tables: by a run that was not completed.

    Returns:
        Stores, tables and shards, largest first.

    Raises:
        CacheError: There is no such folder, a store is of a newer format or its description is
            damaged.
    """
    before = 0.0 if older_than_days is None else time.time() - 86_400 * older_than_days
    names = {fingerprint[:16] for fingerprint in kept}
    waste = []
    for store in _stores(cache):
        read_meta(store)
        busy = not _free(store)
        old_store = last_use(store) < before
        if store.name.partition("-")[0] not in names:
            if old_store or older_than_days is None:
                waste.append(Waste(store, "no recipe's encoder", size_bytes(store), busy))
            continue
        old_why = f"last used more than {older_than_days or 0:g} days ago"
        if old_store and is_fitted(store):
            waste.append(Waste(store, f"fitted to a catalogue {old_why}", size_bytes(store), busy))
            continue
        manifests = table_manifests(store)
        old = [manifest for manifest in manifests if manifest.stat().st_mtime < before]
        for path in old:
            waste.append(Waste(path.parent, f"table {old_why}", size_bytes(path.parent), busy))
        tables = [manifest for manifest in manifests if manifest not in old]
        if unreferenced and tables:
            waste += _unreferenced(store, tables, busy)
    return sorted(waste, key=lambda one: -one.size_bytes)


def free(waste: Collection[Waste]) -> list[Waste]:
    """Removes what `find_waste` found, save what another process is writing to by now.

    Returns:
        What was removed.

    Raises:
        CacheError: Something cannot be removed.
    """
    removed = []
    for one in waste:
        store = one.path if (one.path / "meta.json").exists() else one.path.parents[1]
        with _unused(store) as unused:
            if not unused:
                continue
            with writing(one.path):
                if one.path.is_dir():
                    if one.path == store:  # first: without it the rest is no store any more
                        (store / "meta.json").unlink(missing_ok=True)
                    shutil.rmtree(one.path)
                else:
                    one.path.with_suffix(".parquet").unlink(missing_ok=True)
                    one.path.unlink(missing_ok=True)
            removed.append(one)
    return removed


def _stores(cache: Path) -> list[Path]:
    if not cache.is_dir():
        raise CacheError(f"{cache}: no such folder; name the cache's with --cache or MMKD_CACHE")
    return store_folders(cache)


def _shard_fault(store: ShardStore, number: int, sound: Mapping[int, ShardInfo]) -> str | None:
    """What is wrong with a shard; ``sound`` are those whose records fit their vectors' size."""
    if number not in sound:
        records = store.path(number).with_suffix(".parquet")
        if records.exists():
            return "its records are unreadable, or its size differs from theirs"
        # of a store that is being written to, this may be the shard just on its way
        idle = _free(store.folder) and not records.exists()
        return "has no records: a killed run left it" if idle else None
    read = store.records(number)  # again: it may be another by now
    if (
        read is not None
        and read[1].rows
        and store.sound({number: read[1]}, [number], read_all=True)[1]
    ):
        return "its checksum differs"
    return None


def _repair(store: ShardStore, damage: Collection[Damage]) -> None:
    store.discard([int(one.path.stem) for one in damage if one.path.suffix == ".npy"])
    with store.locked():
        for one in damage:
            if one.path.suffix != ".npy":
                if one.path.name != "meta.json":
                    remove_index(one.path.parent)
                if one.path.name != "index.json":
                    one.path.unlink(missing_ok=True)
    store.clean()


def _unreferenced(store: Path, tables: Sequence[Path], busy: bool) -> list[Waste]:
    held = set().union(*(manifest_shards(manifest) for manifest in tables))
    if not held:  # manifests of an earlier version do not say
        return []
    completed = tables[0].stat().st_mtime
    found = []
    shards = ShardStore(store)
    for number, info in shards.shards().items():
        path = shards.path(number)
        if number not in held and info.rows and path.stat().st_mtime < completed:
            found.append(Waste(path, "no kept table has its vectors", info.size_bytes, busy))
    return found


def _free(store: Path) -> bool:
    with _unused(store) as unused:
        return unused


@contextmanager
def _unused(store: Path) -> Iterator[bool]:
    """Holds all locks of a store, the writer's and any on a part of its work; False if one is held.

    A folder that cannot be written has no writer.
    """
    with ExitStack() as held:
        try:
            for path in {store / "writer.lock", *store.rglob("*.lock")}:
                held.enter_context(FileLock(path, timeout=0))
            unused = True
        except Timeout:
            unused = False
        except OSError:
            unused = True
        yield unused
