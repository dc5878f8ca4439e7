"""Nearest items by cosine: a FAISS index over the vectors that exist, saved beside them.

From an `EmbeddingTable` to an index whose positions are mapped back to item rows. Exact up to
`exact_below` vectors; above, an HNSW graph (Malkov and Yashunin, arXiv:1603.09320).
"""

import json
import zlib
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mmkd.embedding_cache.atomic import remove_temporaries, replacing, write_text
from mmkd.embedding_cache.checksum import file_checksum
from mmkd.embedding_cache.errors import CacheError
from mmkd.embedding_cache.table import EmbeddingTable

EXACT_BELOW = 50_000
_LINKS = 32
_CONSTRUCTION_BREADTH = 128
_SEARCH_BREADTH = 128
_SAMPLE = 4096
# made at import by faiss, which its type stubs do not know
_HNSW_PARAMETERS: Any = vars(faiss)["SearchParametersHNSW"]


class NeighbourIndex:
    """Cosine search over a table's present items.

    Args:
        table: The vectors.
        index: A FAISS index over the present rows' normalised vectors, in their order.
    """

    def __init__(self, table: EmbeddingTable, index: Any) -> None:
        self._table = table
        self._index = index
        self._rows = np.flatnonzero(table.present)

    @classmethod
    def build(cls, table: EmbeddingTable, *, exact_below: int = EXACT_BELOW) -> "NeighbourIndex":
        """Builds the index of a table.

        Args:
            table: The vectors.
            exact_below: Number of present items from which on search is approximate.

        Returns:
            The index.
        """
        vectors = _unit(table.vectors[table.present])
        if len(vectors) < exact_below:
            index: Any = faiss.IndexFlatIP(table.dim)
        else:
            index = faiss.IndexHNSWFlat(table.dim, _LINKS, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = _CONSTRUCTION_BREADTH
        index.add(vectors)
        return cls(table, index)

    @classmethod
    def load(
        cls, table: EmbeddingTable, folder: Path, *, exact_below: int = EXACT_BELOW
    ) -> "NeighbourIndex | None":
        """Reads a saved index; None if it is absent, damaged, or of other vectors."""
        path = folder / "index.faiss"
        try:
            identity = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            if identity != _identity(table, path, exact_below):
                return None
            return cls(table, faiss.read_index(str(path)))
        except (OSError, ValueError, RuntimeError):
            return None

    def save(self, folder: Path, *, exact_below: int = EXACT_BELOW) -> None:
        """Writes the index into a folder.

        Raises:
            CacheError: The folder cannot be written.
        """
        path = folder / "index.faiss"
        remove_temporaries(folder)
        with replacing(path) as temporary:
            try:
                faiss.write_index(self._index, str(temporary))
            except RuntimeError as error:  # how FAISS reports whatever a file system refuses
                raise OSError(f"FAISS cannot write it: {error}") from error
        identity = _identity(self._table, path, exact_below)
        write_text(folder / "index.json", json.dumps(identity, indent=1) + "\n")

    def search(
        self, rows: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Finds the nearest items of items.

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
        if not len(rows):
            return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
        queries = _unit(self._table.vectors[rows])
        own = np.searchsorted(self._rows, rows)[:, None]
        scores, found = self._nearest(queries, k + 1)
        # the item itself is mostly first, but among duplicates it may be anywhere or cut off
        keep = found != own
        keep[keep.all(axis=1), -1] = False
        shape = (len(rows), k)
        return self._rows[found[keep].reshape(shape)], scores[keep].reshape(shape)

    def _nearest(
        self, queries: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        if isinstance(self._index, faiss.IndexHNSWFlat):
            breadth = max(_SEARCH_BREADTH, 2 * k)
            parameters = _HNSW_PARAMETERS(efSearch=breadth)
            scores, found = self._index.search(queries, k, params=parameters)
        else:
            scores, found = self._index.search(queries, k)
        # a graph search can end short of k; those queries are answered by comparing with all
        for query in np.flatnonzero((found < 0).any(axis=1)):
            cosine = _unit(self._table.vectors[self._rows]) @ queries[query]
            found[query] = np.argsort(-cosine, kind="stable")[:k]
            scores[query] = cosine[found[query]]
        return scores, found

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
        if not 1 <= k < max(len(self._rows), 1):
            raise CacheError(
                f"k {k} neighbours: {len(self._rows)} items have a vector; use 1 to "
                f"{max(len(self._rows) - 1, 0)}"
            )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1; a zero row stays zero, its cosine with anything 0."""
    wide = vectors.astype(np.float32, copy=True)
    # scaled by the largest entry first, so that squares neither overflow nor vanish
    for scale in (np.abs(wide).max(axis=1, keepdims=True, initial=0), None):
        norm = np.linalg.norm(wide, axis=1, keepdims=True) if scale is None else scale
        np.divide(wide, norm, out=wide, where=norm > 0)
    return wide


def _identity(table: EmbeddingTable, path: Path, exact_below: int) -> dict[str, Any]:
    """What a saved index must agree with to be used: its own bytes, and the table's vectors."""
    rows = np.flatnonzero(table.present)
    sample = rows[np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(np.int64)]
    return {
        "key": table.key,
        "present": zlib.crc32(np.packbits(table.present).tobytes()),
        "vectors": zlib.crc32(table.vectors[sample].tobytes()),
        "dim": table.dim,
        "exact": len(rows) < exact_below,
        "index": file_checksum(path),
    }


def _shown(rows: NDArray[np.int64]) -> str:
    more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
    return ", ".join(map(str, rows[:5].tolist())) + more
