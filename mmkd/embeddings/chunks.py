"""The work of a run in chunks that any number of processes can share.

A chunk is claimed by a file lock named by its keys, so processes need not know of each other,
and the operating system frees the claim of a killed one. The order of the work and its cuts depend
on the work alone: every process sees the same chunks, and since a killed one commits whole chunks
only, those left after any of them is done or lost stay as they were. So vectors are the same
whatever the number of processes and whenever one was killed. (A run that is stopped on request
commits part of a chunk: what is left is cut anew, and may be rounded otherwise.)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mmkd.embeddings.inputs import Work, WorkList, text_key
from mmkd.embeddings.shards import writing
from mmkd.files import writer_lock


@dataclass(frozen=True)
class Chunk:
    """Work that is encoded by one process and committed together.

    Attributes:
        name: Identity of its keys.
        work: Its inputs.
    """

    name: str
    work: Sequence[Work]


def cut(work: WorkList, *, size: int) -> list[Chunk]:
    """Orders the work and cuts it.

    Texts go by falling length: batches then hold texts of like lengths, and one that needs too
    much memory says so at the start. Equal lengths, and pictures, go by key.

    Args:
        work: Each key once, in any order.
        size: Inputs a chunk; the last may hold fewer.
    """
    ordered = work.ordered()
    parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [Chunk(text_key("\n".join(part.keys)), part) for part in parts]


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
    lock = FileLock(path)
    # the writer's lock: not while the store is being removed
    with writing(path), writer_lock(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(Timeout):
            lock.acquire(timeout=0)
    if not lock.is_locked:
        yield False
        return
    try:
        yield True
        # done, so of no more use; whoever holds the old file open finds the chunk committed
        path.unlink(missing_ok=True)
    finally:
        lock.release()
