"""Upkeep of a cache: every checksum verified, damage removed, and what nothing uses freed.

From a cache's folder to findings. Nothing is removed while another process writes to the store.
"""

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mmkd.embeddings.neighbours import index_damage, remove_index
from mmkd.embeddings.shards import (
    ShardStore,
    read_catalogue_manifest,
    read_catalogue_shards,
    writing,
)
from mmkd.embeddings.stores import (
    DamagedMetaError,
    is_fitted,
    last_use,
    read_meta,
    store_size,
    table_manifests,
)
from mmkd.errors import CacheError
from mmkd.files import writer_lock


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
    """Reads every byte of every shard, and of the manifests and indexes.

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
    stores = [path.parent for path in _descriptions(cache)]
    shards = {store: _shard_numbers(store) for store in stores}
    total, done = sum(map(len, shards.values())), 0
    damage: list[Damage] = []
    for store in stores:
        found: list[Damage] = []
        try:
            read_meta(store)
        except DamagedMetaError:
            found.append(Damage(store / "meta.json", "damaged"))
        contents = ShardStore(store).contents()
        for number in shards[store]:
            found.extend(_shard_damage(store, number, contents.shards.keys()))
            done += 1
            if progress is not None:
                progress(done, total)
        for manifest in table_manifests(store / "tables"):
            if read_catalogue_manifest(manifest) is None:
                found.append(Damage(manifest, "unreadable"))
            if fault := index_damage(manifest.parent):
                found.append(Damage(manifest.parent / "index.json", fault))
        if found and repair:
            _repair(store, found)
        damage.extend(found)
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
    before = time.time() - 86_400 * (older_than_days or 0)
    names = {fingerprint[:16] for fingerprint in kept}
    waste = []
    for meta in _descriptions(cache):
        store = meta.parent
        read_meta(store)
        busy = not _free(store)
        old_store = older_than_days is not None and last_use(store) < before
        if store.name.partition("-")[0] not in names:
            if old_store or older_than_days is None:
                waste.append(Waste(store, "no recipe's encoder", store_size(store), busy))
            continue
        old_why = f"last used more than {older_than_days or 0:g} days ago"
        if old_store and is_fitted(store):
            waste.append(Waste(store, f"fitted to a catalogue {old_why}", store_size(store), busy))
            continue
        manifests = table_manifests(store / "tables")
        old = [
            manifest
            for manifest in manifests
            if older_than_days is not None and manifest.stat().st_mtime < before
        ]
        for path in old:
            waste.append(Waste(path.parent, f"table {old_why}", store_size(path.parent), busy))
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


def _descriptions(cache: Path) -> list[Path]:
    if not cache.is_dir():
        raise CacheError(f"{cache}: no such folder; name the cache's with --cache or MMKD_CACHE")
    return sorted(cache.glob("*/meta.json"))


def _shard_numbers(store: Path) -> list[int]:
    files = (store / "shards").glob("*.*")
    return sorted({int(path.stem) for path in files if path.stem.isdigit()})


def _shard_damage(store: Path, number: int, sound: Collection[int]) -> Iterator[Damage]:
    path = store / "shards" / f"{number:06d}.npy"
    if number in sound:
        shards = ShardStore(store)
        info = shards.contents_of(number)
        if (
            info is not None
            and info.rows
            and shards.open({number: info}, [number], read_all=True)[1]
        ):
            yield Damage(path, "its checksum differs")
    elif not path.with_suffix(".parquet").exists():
        # of a store that is being written to, this may be the shard just on its way
        if _free(store) and not path.with_suffix(".parquet").exists():
            yield Damage(path, "has no records: a killed run left it")
    else:
        yield Damage(path, "its records are unreadable, or its size differs from theirs")


def _repair(store: Path, damage: Collection[Damage]) -> None:
    with writing(store), writer_lock(store):
        shards = ShardStore(store)
        for one in damage:
            if one.path.suffix == ".npy":
                shards.discard([int(one.path.stem)])
            else:
                if one.path.name != "meta.json":
                    remove_index(one.path.parent)
                if one.path.name != "index.json":
                    one.path.unlink(missing_ok=True)
        shards.clean()


def _unreferenced(store: Path, tables: Sequence[Path], busy: bool) -> list[Waste]:
    held = set().union(*(read_catalogue_shards(manifest) for manifest in tables))
    if not held:  # manifests of an earlier version do not say
        return []
    completed = tables[0].stat().st_mtime
    found = []
    for number, info in ShardStore(store).contents().shards.items():
        path = store / "shards" / f"{number:06d}.npy"
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
