"""The store of one encoder's vectors: numbered shards, each written once and never changed.

A shard is ``shards/000001.npy`` (``[rows, D]`` float32, memory-mappable) and the records beside it
(``manifest.py``). The vectors are written first; the records commit them. Readers take no lock:
they see the committed shards, and treat a damaged one as absent. `commit`, `clean` and `discard`
are for the holder of the writer lock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.embedding_cache.atomic import remove_temporaries, replacing, unwritable
from mmkd.embedding_cache.checksum import file_checksum
from mmkd.embedding_cache.errors import CacheError
from mmkd.embedding_cache.manifest import (
    FAILED,
    OK,
    RECORDS,
    DamagedManifestError,
    ShardInfo,
    read_shard_manifest,
    write_shard_manifest,
)


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        key: Its content key.
        item_id: The item that brought it, for a person reading the manifest.
        vector: ``[D]`` float32, or None if it failed.
        reason: Why it failed.
    """

    key: str
    item_id: str
    vector: NDArray[np.float32] | None
    reason: str | None = None


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


class ShardStore:
    """The shards in one folder.

    Args:
        folder: The store's folder; ``shards/`` inside it holds the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "shards"
        self._store = folder

    def contents(self) -> StoreContents:
        """Reads the records of all sound shards; a key's latest record counts."""
        frames, shards = [pl.DataFrame(schema=RECORDS)], {}
        for path in self._manifests():
            try:
                frame, shard = read_shard_manifest(path)
                if shard.rows and self._vectors(_number(path)).stat().st_size != shard.size_bytes:
                    continue
            except (DamagedManifestError, OSError):
                continue
            frames.append(frame)
            shards[_number(path)] = shard
        records = pl.concat(frames).unique("key", keep="last", maintain_order=True)
        return StoreContents(records=records, shards=shards)

    def gather(
        self, contents: StoreContents, places: pl.DataFrame, *, length: int
    ) -> tuple[NDArray[np.float32], list[int]]:
        """Assembles vectors from their shards, checking each shard's checksum.

        Args:
            contents: What `contents` returned.
            places: Columns ``row`` (of the result), ``shard`` and ``shard_row``.
            length: Number of rows of the result.

        Returns:
            ``[length, D]`` float32 with zeros where no place was given, and the numbers of
            damaged shards, whose rows are zero too.
        """
        vectors = np.zeros((length, contents.dim or 0), np.float32)
        damaged: list[int] = []
        for (number,), part in places.partition_by("shard", as_dict=True).items():
            loaded = self._load(int(number), contents.shards[int(number)])
            if loaded is None:
                damaged.append(int(number))
                continue
            vectors[part["row"].to_numpy()] = loaded[part["shard_row"].to_numpy()]
        return vectors, damaged

    def commit(self, outcomes: Sequence[Outcome]) -> None:
        """Writes one more shard; afterwards its outcomes survive the process.

        Raises:
            CacheError: The folder cannot be written.
        """
        number = max((_number(path) for path in self._files()), default=0) + 1
        vectors = [outcome.vector for outcome in outcomes if outcome.vector is not None]
        shard = self._write_vectors(self._vectors(number), vectors)
        row = -1
        rows: list[tuple[object, ...]] = []
        for outcome in outcomes:
            if outcome.vector is None:
                rows.append((outcome.key, outcome.item_id, FAILED, outcome.reason, -1, -1))
                continue
            row += 1
            rows.append((outcome.key, outcome.item_id, OK, None, number, row))
        records = pl.DataFrame(rows, schema=RECORDS, orient="row")
        write_shard_manifest(self._vectors(number).with_suffix(".parquet"), records, shard)

    def clean(self) -> None:
        """Removes what a killed writer or a damaged disk left: unreadable or half shards.

        Raises:
            CacheError: The folder cannot be written.
        """
        remove_temporaries(self._folder, older_than_s=0)
        remove_temporaries(self._store)
        sound = self.contents().shards
        for path in self._files():
            if _number(path) not in sound:
                _unlink(path)

    def discard(self, numbers: Sequence[int]) -> None:
        """Removes those of the named shards that are damaged, so that their inputs are encoded.

        Raises:
            CacheError: The folder cannot be written.
        """
        shards = self.contents().shards
        for number in numbers:
            # another process may have repaired it, and even reused its number, meanwhile
            if number in shards and self._load(number, shards[number]) is None:
                _unlink(self._vectors(number).with_suffix(".parquet"))
                _unlink(self._vectors(number))

    def _load(self, number: int, shard: ShardInfo) -> NDArray[np.float32] | None:
        path = self._vectors(number)
        try:
            if file_checksum(path) != shard.checksum:
                return None
            vectors: NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError):
            return None
        return vectors if vectors.shape == (shard.rows, shard.dim) else None

    def _write_vectors(self, path: Path, vectors: Sequence[NDArray[np.float32]]) -> ShardInfo:
        if not vectors:
            return ShardInfo(rows=0, dim=0, size_bytes=0, checksum=0)
        stacked = np.stack(vectors)
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                np.save(file, stacked, allow_pickle=False)
            # of the file as written: what a reader will check
            checksum = file_checksum(temporary)
            size_bytes = temporary.stat().st_size
        return ShardInfo(len(stacked), int(stacked.shape[1]), size_bytes, checksum)

    def _vectors(self, number: int) -> Path:
        return self._folder / f"{number:06d}.npy"

    def _manifests(self) -> list[Path]:
        return [path for path in self._files() if path.suffix == ".parquet"]

    def _files(self) -> list[Path]:
        try:
            found = [path for path in self._folder.iterdir() if path.stem.isdigit()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CacheError(f"{self._folder}: cannot be read ({error})") from error
        return sorted(found, key=lambda path: (_number(path), path.suffix))


def _number(path: Path) -> int:
    return int(path.stem)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
