"""Shards: vectors and the records of what they were made from, in files that are written once.

From an embedding run's outcomes to ``shards/NNNNNN.npy`` (``[n, D]``) and ``NNNNNN.parquet``
(`RECORDS`), whose appearance commits the shard; and back to records, and to vector files that were
found sound. ``verified.json`` keeps each shard's size, time of change and CRC-32 as they were when
its bytes were last checked, so that opening a table need not read them all again: a file whose size
and time of change are the same is taken to be the same (``mmkd cache verify`` reads it anyway).
"""

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd import column_files
from mmkd.column_files import write_parquet
from mmkd.errors import CacheError, outside
from mmkd.files import (
    file_checksum,
    read_json,
    remove_temporaries,
    replacing,
    write_json,
    writer_lock,
)

StoredDtype = Literal["float32", "float16"]
HALF = "-f16"  # ends the name of a folder whose vectors are float16
_HALF_MAX = 65504.0
OK, MISSING, FAILED = "ok", "missing", "failed"
NOT_IN_FILE = "no vector in the file"  # the reason of an item whose vector was to be there already
# one row per input whose encoding was tried; shard and row are -1 without a vector
RECORDS = {
    "key": pl.String,
    "item_id": pl.String,
    "status": pl.String,
    "reason": pl.String,
    "shard": pl.Int32,
    "row": pl.Int32,
}
# a file changed again within the clock's tick keeps its time: only older ones are trusted
SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        key: Its content key.
        item_id: The item that brought it, for a person reading the records.
        vector: ``[D]`` float32, or None if it failed.
        reason: Why it failed.
    """

    key: str
    item_id: str
    vector: NDArray[np.float32] | None
    reason: str | None = None


@dataclass(frozen=True)
class ShardInfo:
    """What a shard's vector file must be.

    Attributes:
        rows: Number of vectors; 0 if every input of the shard failed (there is then no file).
        dim: Width of a vector.
        size_bytes: Size of the file.
        checksum: CRC-32 of the file. It is to find damage, not forgery.
    """

    rows: int
    dim: int
    size_bytes: int
    checksum: int


@dataclass(frozen=True)
class ShardFile:
    """A shard's vectors, found sound.

    Attributes:
        path: The ``.npy`` file.
        info: What it must be.
        mtime_ns: Its time of change when it was found sound.
    """

    path: Path
    info: ShardInfo
    mtime_ns: int


@dataclass(frozen=True)
class StoreContents:
    """The committed shards at one moment.

    Attributes:
        records: A frame as in `RECORDS`, one row per key.
        shards: Vector files by number.
    """

    records: pl.DataFrame
    shards: Mapping[int, ShardInfo]

    @property
    def dim(self) -> int | None:
        """Width D of the vectors; None while there is none."""
        return next((shard.dim for shard in self.shards.values() if shard.rows), None)


_LISTED_A_CALL = 8  # files that a listing may cost for each call of `unseen`


class ShardStore:
    """The shards in one folder.

    Args:
        folder: The store's folder; ``shards/`` inside it holds the files. Its name says the
            precision (`HALF`).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.dtype: StoredDtype = "float16" if folder.name.endswith(HALF) else "float32"
        self._last = self._probed = self._asked = 0

    def contents(self) -> StoreContents:
        """Reads the records of all whole shards; of a key's the latest counts that has a vector.

        A failure may come late, from a machine that was cut off and knew of no vector.
        """
        frames, shards = [pl.DataFrame(schema=RECORDS)], {}
        for number, records, info in self._whole():
            frames.append(records)
            shards[number] = info
        every, sound = pl.concat(frames), pl.col("status") == OK
        ordered = pl.concat([every.filter(~sound), every.filter(sound)])
        records = ordered.unique("key", keep="last", maintain_order=True)
        return StoreContents(records=records, shards=shards)

    def shards(self) -> dict[int, ShardInfo]:
        """What the vector files of all whole shards must be, by number."""
        return {number: info for number, _, info in self._whole()}

    def _whole(self) -> Iterator[tuple[int, pl.DataFrame, ShardInfo]]:
        for number in self.numbers():
            with reading(self.folder), suppress(FileNotFoundError):
                read, path = self.records(number), self.path(number)
                if read and (not read[1].rows or path.stat().st_size == read[1].size_bytes):
                    yield number, *read

    def records(self, number: int) -> tuple[pl.DataFrame, ShardInfo] | None:
        """A shard's records (`RECORDS`) and what its vector file must be; None if damaged."""
        return records_of(read_parquet(self.path(number).with_suffix(".parquet")))

    def sound(
        self, shards: Mapping[int, ShardInfo], numbers: Collection[int], *, read_all: bool = False
    ) -> tuple[dict[int, ShardFile], list[int]]:
        """Finds shards' files, and checks the bytes of those that changed since the last check.

        Args:
            shards: What each shard must be, by number.
            numbers: Those wanted.
            read_all: Check all bytes, whatever was checked before.

        Returns:
            The sound ones' files, and the numbers of the damaged.
        """
        path = self.folder / "verified.json"
        known: dict[str, list[int]] = {}
        with suppress(OSError, ValueError):
            known = read_json(path)
        settled = time.time_ns() - SETTLED_NS
        files: dict[int, ShardFile] = {}
        stamps = {}
        for number in sorted(shards.keys() & set(numbers)):
            info, file = shards[number], self.path(number)
            with reading(file), suppress(FileNotFoundError, NotADirectoryError, ValueError):
                stat = file.stat()
                stamp = [stat.st_size, stat.st_mtime_ns, info.checksum]
                trusted = not read_all and known.get(str(number)) == stamp
                if stat.st_size == info.size_bytes and (
                    trusted or file_checksum(file) == info.checksum
                ):
                    files[number] = ShardFile(file, info, stat.st_mtime_ns)
                    if stat.st_mtime_ns < settled:
                        stamps[str(number)] = stamp
        if not stamps.items() <= known.items():
            with suppress(OSError):  # a read-only cache is checked each time
                write_json(path, known | stamps)
        return files, sorted(set(numbers) - files.keys())

    def commit(self, outcomes: Sequence[Outcome]) -> int:
        """Writes one more shard; afterwards its outcomes survive the process.

        In a float16 store, an outcome whose vector does not fit is recorded as failed.

        Returns:
            The shard's number.

        Raises:
            CacheError: The folder cannot be written.
        """
        with self.locked():
            number = self._free_number()
            vectors: list[NDArray[np.float32]] = []
            rows: list[tuple[object, ...]] = []
            for outcome in outcomes:
                vector, reason = outcome.vector, outcome.reason
                if vector is not None and self.dtype == "float16":
                    most = float(np.abs(vector).max(initial=0))
                    if most > _HALF_MAX:
                        vector, reason = None, _TOO_LARGE.format(most)
                if vector is None:
                    status = MISSING if reason == NOT_IN_FILE else FAILED
                    rows.append((outcome.key, outcome.item_id, status, reason, -1, -1))
                else:
                    rows.append((outcome.key, outcome.item_id, OK, None, number, len(vectors)))
                    vectors.append(vector)
            info = ShardInfo(rows=0, dim=0, size_bytes=0, checksum=0)
            if vectors:
                stacked = np.stack(vectors).astype(self.dtype, copy=False)  # [n, D]
                with replacing(self.path(number)) as temporary:
                    with temporary.open("wb") as file:
                        np.save(file, stacked, allow_pickle=False)
                    # of the file as written: what a reader will check
                    size, checksum = temporary.stat().st_size, file_checksum(temporary)
                info = ShardInfo(len(stacked), int(stacked.shape[1]), size, checksum)
            self._commit(number, pl.DataFrame(rows, schema=RECORDS, orient="row"), info)
        return number

    def adopt(self, records: pl.DataFrame, info: ShardInfo, vectors: bytes) -> int:
        """Commits a shard that another store wrote, under a number of this one.

        Args:
            records: As in `RECORDS`, with the other store's number.
            info: What its vectors are; they were checked.
            vectors: Its ``.npy`` file's bytes.

        Returns:
            The shard's number here.

        Raises:
            CacheError: The folder cannot be written.
        """
        with self.locked():
            number = self._free_number()
            if info.rows:
                with replacing(self.path(number)) as temporary:
                    temporary.write_bytes(vectors)
            stored = pl.col("shard") >= 0
            here = pl.when(stored).then(pl.lit(number, pl.Int32)).otherwise("shard")
            self._commit(number, records.with_columns(shard=here), info)
        return number

    def _commit(self, number: int, records: pl.DataFrame, info: ShardInfo) -> None:
        path = self.path(number).with_suffix(".parquet")
        write_parquet(path, records, {"mmkd.shard": asdict(info)})

    def clean(self) -> None:
        """Removes what a killed writer or a damaged disk left: unreadable or half shards.

        Raises:
            CacheError: The folder cannot be written.
        """
        with self.locked():
            remove_temporaries(self.folder / "shards", older_than_s=0)
            remove_temporaries(self.folder)
            sound = self.shards()
            for path in self.files():
                if int(path.stem) not in sound:
                    path.unlink(missing_ok=True)

    def discard(self, numbers: Sequence[int]) -> None:
        """Removes those of the named shards that are damaged, so that their inputs are encoded.

        Raises:
            CacheError: The folder cannot be written.
        """
        with self.locked():
            shards = self.shards()
            for number in numbers:
                # another process may have repaired it, and even reused its number, meanwhile
                if number in shards and self.sound(shards, [number], read_all=True)[1]:
                    self.path(number).with_suffix(".parquet").unlink(missing_ok=True)
                    self.path(number).unlink(missing_ok=True)

    def numbers(self) -> list[int]:
        """Numbers of the shards whose records are there."""
        return [number for number, suffix in self._listed() if suffix == ".parquet"]

    def unseen(self, seen: Collection[int]) -> list[int]:
        """Numbers of the shards that were committed since those that were seen.

        Asked for every chunk, so it must not cost the folder's length: the next numbers are tried,
        and the folder is listed only once in so many calls that a call costs the same in any.
        """
        self._asked += 1
        if self._asked * _LISTED_A_CALL >= len(seen):
            self._asked, found = 0, self.numbers()
            self._probed = max(found, default=0)
            return [number for number in found if number not in seen]
        self._probed = self._probed or max(seen)
        found, number, gapless = [], self._probed, True
        while True:
            number += 1
            if number not in seen:
                if self.path(number).with_suffix(".parquet").exists():
                    found.append(number)
                elif self.path(number).exists():  # being written, or left by a killed writer
                    gapless = False
                else:
                    return found
            if gapless:
                self._probed = number

    def files(self) -> list[Path]:
        """All shards' files, whole or not, by number."""
        return [self.path(number).with_suffix(suffix) for number, suffix in self._listed()]

    def _listed(self) -> list[tuple[int, str]]:
        """Number and suffix of all shards' files, in order; no object is made for each path."""
        with reading(self.folder), suppress(FileNotFoundError):
            parts = map(os.path.splitext, os.listdir(self.folder / "shards"))
            return sorted((int(stem), suffix) for stem, suffix in parts if stem.isdigit())
        return []

    def path(self, number: int) -> Path:
        """A shard's vector file; its records are beside it, as ``.parquet``."""
        return self.folder / "shards" / f"{number:06d}.npy"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the store's writer lock.

        Raises:
            CacheError: The folder cannot be written, now or in the block.
        """
        with writing(self.folder), writer_lock(self.folder):
            yield

    def _free_number(self) -> int:
        """A number above all; the folder is listed once, for a commit must not cost its length."""
        if not self._last:
            self._last = max((number for number, _ in self._listed()), default=0)
        self._last += 1
        while any(self.path(self._last).with_suffix(s).exists() for s in (".npy", ".parquet")):
            self._last += 1  # another process's
        return self._last


_TOO_LARGE = (
    f"its vector reaches {{:.4g}}, float16 ends at {_HALF_MAX:.0f}; use cache.dtype: float32"
)


def records_of(
    read: tuple[pl.DataFrame, dict[str, Any]] | None,
) -> tuple[pl.DataFrame, ShardInfo] | None:
    """A shard's records and what its vector file must be, of its Parquet file; None if damaged."""
    if read is None or dict(read[0].schema) != RECORDS:
        return None
    try:
        return read[0], ShardInfo(**read[1]["mmkd.shard"])
    except (ValueError, KeyError, TypeError):
        return None


def read_parquet(
    path: Path, columns: Sequence[str] | None = None
) -> tuple[pl.DataFrame, dict[str, Any]] | None:
    """As `mmkd.column_files.read_parquet`; None if the file is gone, truncated or altered.

    Raises:
        CacheError: It cannot be read for now, which says nothing about what is in it.
    """
    with reading(path):
        try:
            return column_files.read_parquet(path, columns)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None


def reading(path: Path) -> AbstractContextManager[None]:
    """Words what keeps a cache's file from being read, other than its absence or damage."""
    return outside(CacheError, path, "cannot be read", remedy="nothing is changed; try again")


def writing(path: Path) -> AbstractContextManager[None]:
    """Words what keeps a cache's folder from being written."""
    remedy = "free the disk or the folder's permissions, or choose another folder"
    return outside(CacheError, path, "the cache (MMKD_CACHE) cannot be written", remedy=remedy)
