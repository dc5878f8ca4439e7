"""Nearest items by cosine: a FAISS index over the vectors that exist.

From an `EmbeddingTable` to an index whose positions are mapped back to item rows. Vectors go in a
chunk at a time. The index proposes candidates; their cosines are then computed from the table's own
vectors, so what an index rounds away costs recall only, never the figures.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmkd.embedding_cache.errors import CacheError
from mmkd.embedding_cache.index_kind import (
    EXACT,
    EXACT_BELOW,
    default_kind,
    empty_index,
    set_breadth,
    training_rows,
)
from mmkd.embedding_cache.table import EmbeddingTable

_QUERIES = 128  # whose candidates' vectors are held at once
_CANDIDATES = 100


class NeighbourIndex:
    """Cosine search over a table's present items.

    Args:
        table: The vectors.
        index: A FAISS index of normalised vectors.
        rows: ``[n]`` item row of each of its positions; 0 where the item is gone.
        kind: Its factory string.
        trained_on: How many vectors there were when it was built.
    """

    def __init__(
        self,
        table: EmbeddingTable,
        index: Any,
        rows: NDArray[np.int64],
        *,
        kind: str,
        trained_on: int,
    ) -> None:
        self._table = table
        self.index = index
        self.rows = rows
        self.kind = kind
        self.trained_on = trained_on
        self._count = int((rows > 0).sum())

    @classmethod
    def build(
        cls, table: EmbeddingTable, *, kind: str | None = None, exact_below: int = EXACT_BELOW
    ) -> "NeighbourIndex":
        """Builds the index of a table.

        Args:
            table: The vectors.
            kind: FAISS factory string; by default by the number of vectors.
            exact_below: Number of present items from which on the default is approximate.

        Returns:
            The index.

        Raises:
            CacheError: The factory string does not fit the vectors.
        """
        present = np.flatnonzero(table.present)
        kind = kind or default_kind(len(present), exact_below=exact_below)
        index = empty_index(kind, table.dim)
        wanted = training_rows(index, len(present))
        if wanted:
            sample = np.random.default_rng(0).choice(present, wanted, replace=False)
            try:
                index.train(unit(table.vectors[np.sort(sample)]))
            except RuntimeError as error:
                told = str(error).strip().splitlines()[-1][:120]
                raise CacheError(
                    f"cache.index {kind!r} cannot be trained on {len(present)} vectors ({told}); "
                    "use fewer lists, or leave it out"
                ) from error
        built = cls(table, index, np.zeros(0, np.int64), kind=kind, trained_on=len(present))
        built.add(table.present)
        return built

    def add(self, wanted: NDArray[np.bool_]) -> None:
        """Adds the vectors of the rows where ``wanted`` ``[I+1]`` is true."""
        added = [self.rows]
        for rows, vectors in self._table.chunks():
            chosen = wanted[rows]
            if chosen.any():
                self.index.add(unit(vectors[chosen]))
                added.append(rows[chosen])
        self.rows = np.concatenate(added)
        self._count = int((self.rows > 0).sum())

    def search(
        self, rows: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Finds the nearest items of items, some queries at a time.

        Args:
            rows: ``[n]`` item rows that have a vector.
            k: How many neighbours.

        Returns:
            Rows ``[n, k]`` int64 by falling cosine, the item itself left out, and the cosines
            ``[n, k]`` float32.

        Raises:
            CacheError: A row is out of range or has no vector, or fewer than k others have one.
        """
        rows = np.asarray(rows)
        self._check(rows, k)
        found = np.zeros((len(rows), k), np.int64)
        cosines = np.zeros((len(rows), k), np.float32)
        for start in range(0, len(rows), _QUERIES):
            cut = slice(start, start + _QUERIES)
            found[cut], cosines[cut] = self._search(rows[cut], k)
        return found, cosines

    @classmethod
    def exact(
        cls, table: EmbeddingTable, rows: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What `search` would find without an index: all vectors are compared, in chunks."""
        everything = np.flatnonzero(table.present)
        index = cls(table, None, everything, kind=EXACT, trained_on=len(everything))
        index._check(rows, k)
        return index._compare_all(unit(table.vectors[rows]), rows, k)

    def _search(
        self, own: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        queries = unit(self._table.vectors[own])
        candidates = self._candidates(queries, k)
        candidates[candidates == own[:, None]] = 0
        distinct, where = np.unique(candidates, return_inverse=True)
        vectors = unit(self._table.vectors[distinct])
        found = np.zeros((len(own), k), np.int64)
        cosines = np.zeros((len(own), k), np.float32)
        short = []
        for n, at in enumerate(where.reshape(candidates.shape)):
            kept = at[candidates[n] > 0]
            if len(kept) < k:
                short.append(n)
                continue
            cosine = vectors[kept] @ queries[n]
            best = np.lexsort((distinct[kept], -cosine))[:k]
            found[n], cosines[n] = distinct[kept[best]], cosine[best]
        if short:  # a graph or a few lists may end before k
            found[short], cosines[short] = self._compare_all(queries[short], own[short], k)
        return found, cosines

    def _candidates(self, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Rows ``[n, c]``, 0 where there is none: more than k, for what gets lost afterwards."""
        wanted = k + 1 if self.kind == EXACT else max(_CANDIDATES, 4 * (k + 1))
        gone = len(self.rows) - self._count
        wanted = min(len(self.rows), -(-wanted * len(self.rows) // self._count) if gone else wanted)
        set_breadth(self.index, wanted)
        _, positions = self.index.search(queries, wanted)
        return np.where(positions < 0, 0, self.rows[positions])

    def _compare_all(
        self, queries: NDArray[np.float32], own: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        best = np.zeros((len(own), 0), np.int64)
        cosines = np.zeros((len(own), 0), np.float32)
        for rows, vectors in self._table.chunks():
            cosine = queries @ unit(vectors).T  # [n, chunk]
            cosine[rows == own[:, None]] = -np.inf
            if k < len(rows):
                top = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
                cosine, part = np.take_along_axis(cosine, top, axis=1), rows[top]
            else:
                part = np.broadcast_to(rows, cosine.shape)
            best = np.concatenate([best, part], axis=1)
            cosines = np.concatenate([cosines, cosine], axis=1)
            order = np.lexsort((best, -cosines))[:, :k]
            best = np.take_along_axis(best, order, axis=1)
            cosines = np.take_along_axis(cosines, order, axis=1)
        return best, cosines

    def _check(self, rows: NDArray[np.int64], k: int) -> None:
        present = self._table.present
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise CacheError(f"rows {rows.dtype} {rows.shape}; wanted [n] integers")
        outside = rows[(rows < 1) | (rows >= len(present))]
        if len(outside):
            raise CacheError(f"rows {_shown(outside)} are no items; rows are 1..{len(present) - 1}")
        absent = rows[~present[rows]]
        if len(absent):
            raise CacheError(
                f"rows {_shown(absent)} have no {self._table.modality} vector, so no neighbours; "
                "ask for rows where table.present is True"
            )
        if not 1 <= k < max(self._count, 1):
            raise CacheError(
                f"k {k} neighbours: {self._count} items have a vector; use 1 to "
                f"{max(self._count - 1, 0)}"
            )


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1; a zero row stays zero, its cosine with anything 0."""
    wide = vectors.astype(np.float32, copy=True)
    # scaled by the largest entry first, so that squares neither overflow nor vanish
    for scale in (np.abs(wide).max(axis=1, keepdims=True, initial=0), None):
        norm = np.linalg.norm(wide, axis=1, keepdims=True) if scale is None else scale
        np.divide(wide, norm, out=wide, where=norm > 0)
    return wide


def _shown(rows: NDArray[np.int64]) -> str:
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return ", ".join(map(str, rows[:5].tolist())) + more
