"""Embedding tables: one vector per item, read where it lies when it is asked for.

From a catalogue's statuses (each item's place in a shard) to an `EmbeddingTable`. Its vectors are
scattered over shards in the order they were encoded in: `StoredVectors` knows each row's place (8
bytes an item) and reads through a memory map; nothing is read before it is indexed, and a pass over
everything (`chunks`) holds one chunk.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.embeddings.shards import OK, ShardFile
from mmkd.embeddings.stores import record_table
from mmkd.encoders import EncoderCard
from mmkd.errors import CacheError
from mmkd.files import file_checksum

CHUNK_ROWS = 8192
# a map holds a file descriptor, of which a process has about a thousand
_MAPS_KEPT = 128


@dataclass(frozen=True)
class EmbeddingTable:
    """Frozen vectors of one encoder for a catalogue of I items.

    Made by `EmbeddingCache.table`, or from arrays of one's own:

        >>> import numpy as np
        >>> from mmkd import EmbeddingTable
        >>> vectors = np.array([[0, 0], [3, 4], [0, 0], [1, 0]], dtype=np.float32)
        >>> present = np.array([False, True, False, True])
        >>> table = EmbeddingTable(vectors, present, "mine", "text", "mine-1")
        >>> len(table), table.dim
        (3, 2)
        >>> for rows, vectors in table.chunks():
        ...     print(rows, vectors.shape)
        [1 3] (2, 2)

    Attributes:
        vectors: ``[I+1, D]`` float32; row 0 (padding) and the rows of absent items are zero. An
            array, or `StoredVectors`, which reads rows from disk when they are asked for.
        present: ``[I+1]`` bool; whether the row holds a vector. A zero row of an absent item is
            not data.
        card_name: Name of the encoder card.
        modality: ``"text"`` or ``"image"``.
        key: Identity of the table: equal for equal encoder, items and inputs.
    """

    vectors: "NDArray[np.float32] | StoredVectors"
    present: NDArray[np.bool_]
    card_name: str
    modality: str
    key: str

    def __post_init__(self) -> None:
        """Refuses arrays that do not fit each other or a padding row that is present."""
        if self.vectors.ndim != 2 or self.present.shape != self.vectors.shape[:1]:
            raise CacheError(
                f"vectors {self.vectors.shape} and present {self.present.shape} do not fit; "
                "wanted [I+1, D] and [I+1]"
            )
        if not len(self.present) or self.present[0]:
            raise CacheError("row 0 of an embedding table is padding: present[0] must be False")

    @property
    def dim(self) -> int:
        """Width D of a vector."""
        return int(self.vectors.shape[1])

    def chunks(
        self, size: int = CHUNK_ROWS
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Goes once over the present rows in bounded memory, in the order they are stored.

        Args:
            size: Rows at once.

        Yields:
            Rows ``[n]`` int64 and their vectors ``[n, D]`` float32.
        """
        if isinstance(self.vectors, StoredVectors):
            for rows, part in self.vectors.chunks(size):
                kept = self.present[rows]
                yield rows[kept], part[kept]
            return
        present = np.flatnonzero(self.present)
        for start in range(0, len(present), size):
            rows = present[start : start + size]
            yield rows, np.asarray(self.vectors[rows], np.float32)

    def __len__(self) -> int:
        """Number of items, padding not counted."""
        return len(self.present) - 1


def new_table(
    card: EncoderCard, store: Path, statuses: pl.DataFrame, files: Mapping[int, ShardFile]
) -> EmbeddingTable:
    """The table of a catalogue whose every item has a status; its manifest is recorded.

    Args:
        card: The encoder's card.
        store: The store's folder.
        statuses: A row per item (`mmkd.embeddings.cache.item_statuses`).
        files: The shards that hold its vectors, found sound.

    Raises:
        CacheError: No item has a vector.
    """
    held = pl.col("status") == OK
    if not (statuses["status"] == OK).any():
        counts = statuses["reason"].value_counts(sort=True).rows()[:3]
        told = "; ".join(f"{count} x {reason}" for reason, count in counts) or "no items"
        raise CacheError(
            f"card {card.name}: none of {len(statuses)} items has a vector ({told}); check the "
            f"catalogue's {card.modality} column, or use a cache with retry_failed=True"
        )
    places = np.full((2, len(statuses) + 1), -1, np.int32)
    for column, name in zip(places, ("shard", "shard_row"), strict=True):
        column[1:] = statuses.select(pl.when(held).then(name).otherwise(-1))[:, 0].to_numpy()
    vectors = StoredVectors(files, *places, dim=next(iter(files.values())).info.dim)
    key = record_table(store, statuses, {number: file.info for number, file in files.items()})
    return EmbeddingTable(vectors, places[0] >= 0, card.name, card.modality, key)


class StoredVectors:
    """``[I+1, D]`` float32 rows over a store's shards; absent rows are zero.

    Indexing by an integer, a slice, an integer array or a mask gives a new float32 array, whatever
    precision is stored; ``np.asarray`` gives all of it. It cannot be written to.

    Args:
        files: The shards that hold a row.
        shards: ``[I+1]`` int32 number of each row's shard; -1 where the row has no vector.
        shard_rows: ``[I+1]`` int32 row in its shard.
        dim: Width D.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(
        self,
        files: Mapping[int, ShardFile],
        shards: NDArray[np.int32],
        shard_rows: NDArray[np.int32],
        *,
        dim: int,
    ) -> None:
        self.files = dict(files)
        self.shape = len(shards), dim
        self._shards = shards
        self._shard_rows = shard_rows
        self._maps: OrderedDict[int, NDArray[Any]] = OrderedDict()

    @property
    def places(self) -> NDArray[np.int64]:
        """``[I+1]`` shard * 2^32 + row in it: equal for rows that share a vector; -1 if absent."""
        places = (self._shards.astype(np.int64) << 32) | self._shard_rows
        return np.where(self._shards < 0, -1, places)

    def chunks(
        self, size: int = CHUNK_ROWS
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Goes once over all present rows in the order they are stored, not that of the rows.

        Args:
            size: Rows at once.

        Yields:
            Rows ``[n]`` int64 and their vectors ``[n, D]`` float32.
        """
        order = np.lexsort((self._shard_rows, self._shards)).astype(np.int64, copy=False)
        order = order[np.searchsorted(self._shards[order], 0) :]
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield rows, self[rows]

    def __len__(self) -> int:
        """I+1."""
        return len(self._shards)

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        """Rows ``[n, D]``, or ``[D]`` for an integer; each shard's are read in one go."""
        places = self._shards[rows], self._shard_rows[rows]
        if np.ndim(places[0]) > 1:
            raise IndexError("index stored vectors by row: an integer, slice, [n] or a mask")
        shards, shard_rows = np.atleast_1d(*places)
        gathered = np.zeros((len(shards), self.shape[1]), np.float32)
        # sorted, so that the pages of a map are read once and in order
        order = np.lexsort((shard_rows, shards))
        numbers, starts = np.unique(shards[order], return_index=True)
        for number, part in zip(numbers.tolist(), np.split(order, starts)[1:], strict=True):
            if number >= 0:
                gathered[part] = self._map(number, keep=len(part))[shard_rows[part]]
        return gathered if np.ndim(places[0]) else gathered[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Reads everything."""
        if copy is False:
            raise ValueError("stored vectors become an array only by a copy")
        whole = self[:]
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _map(self, number: int, *, keep: int) -> NDArray[Any]:
        """A shard's map; one that is about to be read through is not kept, nor its pages."""
        if number in self._maps:
            self._maps.move_to_end(number)
            return self._maps[number]
        file = self.files[number]
        try:
            stat = file.path.stat()
            same = (stat.st_size, stat.st_mtime_ns) == (file.info.size_bytes, file.mtime_ns)
            same = same or file_checksum(file.path) == file.info.checksum  # encoded again, as equal
            mapped = np.load(file.path, mmap_mode="r", allow_pickle=False) if same else None
        except (OSError, ValueError):
            mapped = None
        if mapped is None or mapped.shape != (file.info.rows, self.shape[1]):
            raise CacheError(
                f"{file.path}: was removed or changed since the table was opened; open it again"
            )
        array = np.asarray(mapped)
        if 2 * keep < file.info.rows:
            self._maps[number] = array
            while len(self._maps) > _MAPS_KEPT:
                self._maps.popitem(last=False)
        return array
