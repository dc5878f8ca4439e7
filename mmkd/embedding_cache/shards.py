"""The store of one encoder's vectors: numbered shards, each written once and never changed.

A shard is ``shards/000001.npy`` (``[rows, D]`` float32, memory-mappable) and the records beside it
(``manifest.py``). The vectors are written first; the records commit them. Readers take no lock:
they see the committed shards, and treat a damaged one as absent. `commit`, `clean` and `discard`
are for the holder of the writer lock.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.embedding_cache.atomic import remove_temporaries, replacing, unwritable
from mmkd.embedding_cache.checksum import file_checksum
from mmkd.embedding_cache.errors import CacheError
from mmkd.embedding_cache.manifest import (
    FAILED,
    MISSING,
    NOT_IN_FILE,
    OK,
    RECORDS,
    DamagedManifestError,
    ShardInfo,
    read_shard_manifest,
    write_shard_manifest,
)
from mmkd.embedding_cache.vectors import ShardFile
from mmkd.embedding_cache.verified import shard_path, sound_files

StoredDtype = Literal["float32", "float16"]
HALF = "-f16"  # ends the name of a folder whose vectors are float16
_HALF_MAX = 65504.0
_SUFFIXES = (".npy", ".parquet")


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
        folder: The store's folder; ``shards/`` inside it holds the files. Its name says the
            precision (`HALF`).
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "shards"
        self._store = folder
        self._last = 0
        self.dtype: StoredDtype = "float16" if folder.name.endswith(HALF) else "float32"

    def contents(self) -> StoreContents:
        """Reads the records of all sound shards; a key's latest record counts."""
        frames, shards = [pl.DataFrame(schema=RECORDS)], {}
        for path in self._manifests():
            try:
                frame, shard = read_shard_manifest(path)
                if shard.rows and self._vectors(_number(path)).stat().st_size != shard.size_bytes:
                    continue
            except (DamagedManifestError, FileNotFoundError):
                continue
            except OSError as error:  # no damage: `clean` must not remove it
                raise CacheError(f"{path}: cannot be read ({error})") from error
            frames.append(frame)
            shards[_number(path)] = shard
        records = pl.concat(frames).unique("key", keep="last", maintain_order=True)
        return StoreContents(records=records, shards=shards)

    def numbers(self) -> list[int]:
        """Numbers of the shards whose records are there."""
        return [_number(path) for path in self._manifests()]

    def keys_of(self, number: int) -> list[str]:
        """Keys of the inputs whose outcome a shard holds; none if its records cannot be read."""
        try:
            records, _ = read_shard_manifest(self._vectors(number).with_suffix(".parquet"))
        except DamagedManifestError:
            return []
        return records["key"].to_list()

    def contents_of(self, number: int) -> ShardInfo | None:
        """What one shard's vector file must be; None if its records are gone or damaged."""
        try:
            return read_shard_manifest(self._vectors(number).with_suffix(".parquet"))[1]
        except DamagedManifestError:
            return None

    def open(
        self, shards: Mapping[int, ShardInfo], numbers: Collection[int], *, read_all: bool = False
    ) -> tuple[dict[int, ShardFile], list[int]]:
        """Finds shards' files, and checks the bytes of those that changed since the last check.

        Args:
            shards: What each shard must be, by number.
            numbers: Those wanted.
            read_all: Check all bytes.

        Returns:
            The sound ones' files, and the numbers of the damaged.
        """
        wanted = {number: shards[number] for number in sorted(numbers) if number in shards}
        files, damaged = sound_files(self._store, wanted, read_all=read_all)
        return files, damaged + sorted(set(numbers) - set(wanted))

    def commit(self, outcomes: Sequence[Outcome]) -> int:
        """Writes one more shard; afterwards its outcomes survive the process.

        In a float16 store, an outcome whose vector does not fit is recorded as failed.

        Returns:
            The shard's number.

        Raises:
            CacheError: The folder cannot be written.
        """
        number = self._free_number()
        if self.dtype == "float16":
            outcomes = [_fitting_half(outcome) for outcome in outcomes]
        vectors = [outcome.vector for outcome in outcomes if outcome.vector is not None]
        shard = self._write_vectors(self._vectors(number), vectors)
        row = -1
        rows: list[tuple[object, ...]] = []
        for outcome in outcomes:
            if outcome.vector is None:
                status = MISSING if outcome.reason == NOT_IN_FILE else FAILED
                rows.append((outcome.key, outcome.item_id, status, outcome.reason, -1, -1))
                continue
            row += 1
            rows.append((outcome.key, outcome.item_id, OK, None, number, row))
        records = pl.DataFrame(rows, schema=RECORDS, orient="row")
        write_shard_manifest(self._vectors(number).with_suffix(".parquet"), records, shard)
        return number

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
            if number in shards and self.open(shards, [number], read_all=True)[1]:
                _unlink(self._vectors(number).with_suffix(".parquet"))
                _unlink(self._vectors(number))

    def _write_vectors(self, path: Path, vectors: Sequence[NDArray[np.float32]]) -> ShardInfo:
        if not vectors:
            return ShardInfo(rows=0, dim=0, size_bytes=0, checksum=0)
        stacked = np.stack(vectors).astype(self.dtype, copy=False)
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                np.save(file, stacked, allow_pickle=False)
            # of the file as written: what a reader will check
            checksum = file_checksum(temporary)
            size_bytes = temporary.stat().st_size
        return ShardInfo(len(stacked), int(stacked.shape[1]), size_bytes, checksum)

    def _free_number(self) -> int:
        """A number above all; the folder is listed once, for a commit must not cost its length."""
        if not self._last:
            self._last = max((_number(path) for path in self._files()), default=0)
        self._last += 1
        while any(self._vectors(self._last).with_suffix(end).exists() for end in _SUFFIXES):
            self._last += 1  # another process's
        return self._last

    def _vectors(self, number: int) -> Path:
        return shard_path(self._store, number)

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


def _fitting_half(outcome: Outcome) -> Outcome:
    """The outcome, or a failed one where float16 cannot hold the vector."""
    vector = outcome.vector
    if vector is None or float(np.abs(vector).max(initial=0)) <= _HALF_MAX:
        return outcome
    reason = (
        f"its vector reaches {float(np.abs(vector).max()):.4g}, float16 ends at {_HALF_MAX:.0f}; "
        "use cache.dtype: float32"
    )
    return replace(outcome, vector=None, reason=reason)


def _number(path: Path) -> int:
    return int(path.stem)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
