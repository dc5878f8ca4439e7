"""The work of a run in chunks that any number of processes can share.

A chunk is claimed by a file lock named by what is in it, so processes need not know of each other,
and the operating system frees the claim of a killed one. The order of the work and its cuts depend
on the work alone: every process sees the same chunks, and since only whole chunks are committed,
the chunks left after any of them is done or lost stay as they were. So vectors are the same
whatever the number of processes and whenever one was killed.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mmkd.embedding_cache.atomic import unwritable
from mmkd.embedding_cache.pictures import Work
from mmkd.embedding_cache.shards import ShardStore


@dataclass(frozen=True)
class Chunk:
    """Work that is encoded by one process and committed together.

    Attributes:
        name: Identity of its keys.
        work: Its inputs.
    """

    name: str
    work: Sequence[Work]


def cut(work: Sequence[Work], *, size: int) -> list[Chunk]:
    """Orders the work and cuts it.

    Texts go by falling length: batches then hold texts of like lengths, and one that needs too
    much memory says so at the start. Pictures keep the catalogue's order.

    Args:
        work: Each key once.
        size: Inputs a chunk; the last may hold fewer.
    """
    ordered = list(work)
    if ordered and isinstance(ordered[0].source, str):
        ordered.sort(key=lambda item: (-len(str(item.source)), item.key))
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [Chunk(chunk_name(item.key for item in part), part) for part in parts]


def chunk_name(keys: Iterable[str]) -> str:
    """Identity of a set of keys, 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:16]


class Committed:
    """What was committed since it was made, by whichever process.

    Args:
        store: The store.
        size: Inputs of a whole chunk.
    """

    def __init__(self, store: ShardStore, *, size: int) -> None:
        self._store = store
        self._size = size
        self._seen = set(store.numbers())
        self._names: set[str] = set()
        self._parts: set[str] = set()  # keys of what is less than a chunk: of a process stopped

    def left(self, chunk: Chunk) -> Sequence[Work]:
        """What of a chunk is not committed yet; reads the records of shards that are new."""
        for number in set(self._store.numbers()) - self._seen:
            keys = self._store.keys_of(number)
            if keys is not None:  # else it is gone again: damaged, or of a killed writer
                self._names.add(chunk_name(keys))
                self._parts.update(keys if len(keys) < self._size else ())
            self._seen.add(number)
        if chunk.name in self._names:
            return []
        return [item for item in chunk.work if item.key not in self._parts]


@contextmanager
def claimed(folder: Path, chunk: Chunk) -> Iterator[bool]:
    """Claims a chunk for the duration of the block, unless another process or thread has it.

    Args:
        folder: The store's folder.
        chunk: The chunk.

    Yields:
        Whether it is claimed here. Ask then whether it was committed meanwhile.

    Raises:
        CacheError: The folder cannot be written.
    """
    path = folder / "claims" / f"{chunk.name}.lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            yield False
            return
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield True
        # done, so of no more use; whoever holds the old file open finds the chunk committed
        path.unlink(missing_ok=True)
    finally:
        lock.release()
