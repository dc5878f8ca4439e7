"""Which shards were found sound, so that opening a table need not read them all again.

``verified.json`` in a store's folder keeps each shard's size, time of change and CRC-32 as they
were when its bytes were last checked. A file whose size and time of change are the same is taken
to be the same; ``mmkd cache verify`` reads the bytes anyway.
"""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmkd.errors import CacheError, outside
from mmkd.files import file_checksum, remove_temporaries, replacing, write_text


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
    except OSError:
        pass  # a read-only cache is checked each time


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
_SHARD_METADATA = b"mmkd.shard"
_CATALOGUE_METADATA = b"mmkd.shards"


class DamagedManifestError(Exception):
    """A manifest file cannot be read; its shard counts as never written."""


def write_shard_manifest(path: Path, records: pl.DataFrame, shard: ShardInfo) -> None:
    """Writes a shard's records; its appearance commits the shard."""
    arrow = records.to_arrow(compat_level=pl.CompatLevel.oldest())
    arrow = arrow.replace_schema_metadata({_SHARD_METADATA: json.dumps(asdict(shard))})
    with replacing(path) as temporary:
        pq.write_table(arrow, temporary, compression="zstd", write_page_checksum=True)


def read_shard_manifest(path: Path) -> tuple[pl.DataFrame, ShardInfo]:
    """Reads what `write_shard_manifest` wrote.

    Returns:
        Records as in `RECORDS`, and the shard's vector file.

    Raises:
        DamagedManifestError: The file is gone, truncated or altered.
        CacheError: It cannot be read for another reason, such as a disk that does not answer.
    """
    try:
        arrow = pq.ParquetFile(path, page_checksum_verification=True).read(use_threads=False)
        shard = ShardInfo(**json.loads(arrow.schema.metadata[_SHARD_METADATA]))
        frame = pl.DataFrame(pl.from_arrow(arrow))
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        if is_trouble(error):
            raise CacheError(f"{path}: cannot be read ({error}); nothing is changed") from error
        raise DamagedManifestError(f"{path}: {error}") from error
    if dict(frame.schema) != RECORDS:
        raise DamagedManifestError(f"{path}: columns {dict(frame.schema)}, wanted {RECORDS}")
    return frame, shard


def is_trouble(error: Exception) -> bool:
    """Whether a file could not be read for now, which says nothing about what is in it.

    pyarrow reports damage as an OSError too, but only the operating system's have a number.
    """
    if isinstance(error, MemoryError):
        return True
    gone = isinstance(error, FileNotFoundError | NotADirectoryError)
    return isinstance(error, OSError) and error.errno is not None and not gone


def write_catalogue_manifest(
    path: Path, statuses: pl.DataFrame, shards: Mapping[int, ShardInfo]
) -> None:
    """Writes a catalogue's manifest: a row per item, with its id, key, status, reason, place.

    Args:
        path: The file.
        statuses: The rows.
        shards: The shards that the places are in, so that a place is known to be of these bytes.
    """
    used = {str(number): astuple(info) for number, info in sorted(shards.items())}
    arrow = statuses.to_arrow(compat_level=pl.CompatLevel.oldest())
    arrow = arrow.replace_schema_metadata({_CATALOGUE_METADATA: json.dumps(used)})
    with replacing(path) as temporary:
        pq.write_table(arrow, temporary, compression="zstd", write_page_checksum=True)


def read_catalogue_manifest(
    path: Path, columns: Sequence[str] | None = None
) -> pl.DataFrame | None:
    """Reads a catalogue's manifest; None if it is absent or damaged."""
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        arrow = file.read(columns=None if columns is None else list(columns))
        frame = pl.DataFrame(pl.from_arrow(arrow))
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None
    return frame if columns is None or set(columns) == set(frame.columns) else None


def read_catalogue_shards(path: Path) -> dict[int, ShardInfo]:
    """The shards that a catalogue's manifest has places in; none if it is damaged or older."""
    try:
        used = json.loads(pq.read_schema(path).metadata[_CATALOGUE_METADATA])
        return {int(number): ShardInfo(*info) for number, info in used.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException):
        return {}


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
                path.unlink(missing_ok=True)

    def discard(self, numbers: Sequence[int]) -> None:
        """Removes those of the named shards that are damaged, so that their inputs are encoded.

        Raises:
            CacheError: The folder cannot be written.
        """
        shards = self.contents().shards
        for number in numbers:
            # another process may have repaired it, and even reused its number, meanwhile
            if number in shards and self.open(shards, [number], read_all=True)[1]:
                self._vectors(number).with_suffix(".parquet").unlink(missing_ok=True)
                self._vectors(number).unlink(missing_ok=True)

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


def writing(path: Path) -> AbstractContextManager[None]:
    """Words what keeps a cache's folder from being written."""
    remedy = "free the disk or the folder's permissions, or choose another folder"
    return outside(CacheError, path, "the cache (MMKD_CACHE) cannot be written", remedy=remedy)
