"""The manifest: which input has which vector, where, or why none.

Each shard of vectors has a Parquet file of records beside it, so committing costs the size of a
shard, however large the cache is, and a damaged file costs one shard. All of them read together
are the manifest of a store. A catalogue's own manifest, written when a table is complete, names
every item's status.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from mmkd.embedding_cache.atomic import replacing
from mmkd.embedding_cache.errors import CacheError

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
