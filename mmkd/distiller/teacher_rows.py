"""The teacher's present rows [n, D] of a table [I+1, D], in memory or left on disk."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class StoredTeacher(Protocol):
    """Vectors that stay on disk, as an embedding cache's table has them."""

    @property
    def shape(self) -> tuple[int, int]:
        """(I+1, D)."""

    def __len__(self) -> int:
        """I+1."""

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        """Rows [n, D]."""

    def chunks(self, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Every row that holds a vector once, in any order: rows [c] and their vectors [c, D]."""


class PresentRows:
    """Present rows of a stored teacher, numbered 0..n-1; `reduction.ChunkedVectors`."""

    def __init__(self, vectors: StoredTeacher, present: NDArray[np.bool_]) -> None:
        self._vectors = vectors
        self._present = present
        self._number = np.cumsum(present) - 1  # [I+1]
        self.shape: tuple[int, int] = (int(present.sum()), vectors.shape[1])

    def chunks(self, size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Every row once, at most `size` at a time."""
        for rows, vectors in self._vectors.chunks(size):
            kept = self._present[rows]
            yield self._number[rows[kept]], vectors[kept]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of them in memory."""
        whole = self._vectors[self._present]
        return whole if dtype is None else whole.astype(dtype, copy=False)


def present_rows(
    vectors: NDArray[np.float32] | StoredTeacher, present: NDArray[np.bool_]
) -> NDArray[np.float32] | PresentRows:
    """The rows where `present` [I+1]; of an array an array."""
    if isinstance(vectors, np.ndarray):
        return np.ascontiguousarray(vectors[present], dtype=np.float32)
    return PresentRows(vectors, present)
