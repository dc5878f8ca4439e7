"""The embedding table: one vector per item of a catalogue, from `EmbeddingCache.table`."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmkd.embedding_cache.errors import CacheError
from mmkd.embedding_cache.vectors import CHUNK_ROWS, StoredVectors, chunks


@dataclass(frozen=True)
class EmbeddingTable:
    """Frozen vectors of one encoder for a catalogue of I items.

    Attributes:
        vectors: ``[I+1, D]`` float32; row 0 (padding) and the rows of absent items are zero. An
            array, or `StoredVectors`, which reads rows from disk when they are asked for.
        present: ``[I+1]`` bool; whether the row holds a vector. A zero row of an absent item is
            not data.
        card_name: Name of the encoder card.
        modality: ``"text"`` or ``"image"``.
        key: Identity of the table: equal for equal encoder, items and inputs.
    """

    vectors: NDArray[np.float32] | StoredVectors
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
        return chunks(self.vectors, self.present, size)

    def __len__(self) -> int:
        """Number of items, padding not counted."""
        return len(self.present) - 1
