"""Which shards were found sound, so that opening a table need not read them all again.

``verified.json`` in a store's folder keeps each shard's size, time of change and CRC-32 as they
were when its bytes were last checked. A file whose size and time of change are the same is taken
to be the same; ``mmkd cache verify`` reads the bytes anyway.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from mmkd.embedding_cache.atomic import write_text
from mmkd.embedding_cache.checksum import file_checksum
from mmkd.embedding_cache.errors import CacheError
from mmkd.embedding_cache.manifest import ShardInfo
from mmkd.embedding_cache.vectors import ShardFile

# a file changed again within the clock's tick keeps its time: only older ones are trusted
_SETTLED_NS = 2_000_000_000


def sound_files(
    store: Path, shards: Mapping[int, ShardInfo], *, read_all: bool = False
) -> tuple[dict[int, ShardFile], list[int]]:
    """Checks shards, reading only those that changed since they were last checked.

    Args:
        store: The store's folder.
        shards: What each shard must be.
        read_all: Read every byte, whatever was checked before.

    Returns:
        The sound shards' files, and the numbers of the others.
    """
    stamps = {} if read_all else _stamps(store)
    files: dict[int, ShardFile] = {}
    damaged = []
    for number, info in shards.items():
        path = shard_path(store, number)
        try:
            stat = path.stat()
            stamp = [stat.st_size, stat.st_mtime_ns, info.checksum]
            if stat.st_size != info.size_bytes or (
                stamps.get(number) != stamp and file_checksum(path) != info.checksum
            ):
                damaged.append(number)
                continue
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: it is empty
            damaged.append(number)
            continue
        except OSError as error:  # it may be sound all the same
            raise CacheError(f"{path}: cannot be read ({error}); nothing is changed") from error
        files[number] = ShardFile(path, info, stat.st_mtime_ns)
    _remember(store, files)
    return files, damaged


def shard_path(store: Path, number: int) -> Path:
    """A shard's vector file."""
    return store / "shards" / f"{number:06d}.npy"


def _stamps(store: Path) -> dict[int, list[int]]:
    try:
        content = json.loads((store / "verified.json").read_text(encoding="utf-8"))
        return {int(number): stamp for number, stamp in content.items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember(store: Path, files: Mapping[int, ShardFile]) -> None:
    settled = time.time_ns() - _SETTLED_NS
    known = _stamps(store)
    found = {
        number: [file.info.size_bytes, file.mtime_ns, file.info.checksum]
        for number, file in files.items()
        if file.mtime_ns < settled
    }
    if found.items() <= known.items():
        return
    try:
        write_text(store / "verified.json", json.dumps({**known, **found}) + "\n")
    except CacheError:
        pass  # a read-only cache is checked each time
