"""The items most similar to items, by cosine: FAISS proposes, the vectors themselves decide.

From an `EmbeddingTable` to a `NeighbourIndex`, kept in the table's folder as ``index.faiss``,
``index.npy`` (row and place of each position) and ``index.json``, beside them large inverted lists
as ``index.ivfdata``, and carried over to the next catalogue where it fits.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.embeddings.index_kinds import (
    EXACT,
    EXACT_BELOW,
    default_kind,
    empty_index,
    train_index,
    widen,
)
from mmkd.embeddings.inverted import fill_on_disk, read_empty, read_mapped, too_large
from mmkd.embeddings.stores import table_manifests
from mmkd.embeddings.table import EmbeddingTable, StoredVectors
from mmkd.errors import CacheError, shown
from mmkd.files import file_checksum, read_json, remove_temporaries, replacing, write_sealed_json

_logger = logging.getLogger(__name__)
INDEX_FORMAT = 2
LISTS_FORMAT = 3  # of one whose inverted lists are a file of their own
LISTS = "index.ivfdata"
_QUERIES = 128  # whose candidates' vectors are held at once
_CANDIDATES = 100
# beyond these a carried-over index is built anew
_CHANGED_SHARE = 0.2
_FILES = ("index.json", "index.faiss", "index.npy", LISTS)
_GROWTH = 2


class NeighbourIndex:
    """Cosine search over a table's present items.

    Args:
        table: The vectors.
        index: A FAISS index of normalised vectors.
        rows: ``[n]`` item row of each of its positions; 0 where the item is gone.
        kind: Its factory string.
        trained_on: How many vectors there were when it was built.

    Attributes:
        lists_checksum: Of the inverted lists, where they are a file of their own in the table's
            folder; else None.
        grown: Whether anything was added since it was read.
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
        self.kind = kind
        self.trained_on = trained_on
        self.lists_checksum: int | None = None
        self.grown = False
        self._hold(rows)

    @classmethod
    def build(
        cls,
        table: EmbeddingTable,
        *,
        kind: str | None = None,
        exact_below: int = EXACT_BELOW,
        folder: Path | None = None,
    ) -> "NeighbourIndex":
        """Builds the index of a table.

        Args:
            table: The vectors.
            kind: FAISS factory string; by default by the number of vectors.
            exact_below: Number of present items from which on the default is approximate.
            folder: Where inverted lists go that are too large to be held; None holds them.

        Returns:
            The index.

        Raises:
            CacheError: The factory string does not fit the vectors.
        """
        present = np.flatnonzero(table.present)
        kind = kind or default_kind(len(present), exact_below=exact_below)
        index = empty_index(kind, table.dim)
        train_index(index, kind, present, lambda rows: unit(table.vectors[rows]))
        built = cls(table, index, np.zeros(0, np.int64), kind=kind, trained_on=len(present))
        if folder is not None and too_large(index, len(present)):
            built.add_on_disk(table.present, folder)
        else:
            built.add(table.present)
        return built

    def add(self, wanted: NDArray[np.bool_]) -> None:
        """Adds the vectors of the rows where ``wanted`` ``[I+1]`` is true."""
        added = [self.rows]
        for rows, vectors in self._parts(wanted):
            self.index.add(vectors)
            added.append(rows)
        self.grown = True
        self._hold(np.concatenate(added))

    def add_on_disk(self, wanted: NDArray[np.bool_], folder: Path, *, before: Any = None) -> None:
        """As `add`, to a trained index without vectors whose lists then lie in a folder.

        Args:
            wanted: ``[I+1]`` bool.
            folder: The table's; OSError where it cannot be written.
            before: The index that the present rows are in.
        """
        added = [self.rows]

        def parts() -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
            count = len(self.rows)
            for rows, vectors in self._parts(wanted):
                added.append(rows)
                yield np.arange(count, count + len(rows)), vectors
                count += len(rows)

        self.lists_checksum = fill_on_disk(self.index, parts(), folder / LISTS, before=before)
        self.grown = True
        self._hold(np.concatenate(added))

    def _parts(
        self, wanted: NDArray[np.bool_]
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for rows, vectors in self._table.chunks():
            chosen = wanted[rows]
            if chosen.any():
                yield rows[chosen], unit(vectors[chosen])

    def _hold(self, rows: NDArray[np.int64]) -> None:
        self.rows = rows
        self._count = int((rows > 0).sum())

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
        self._check(rows, k)
        found = np.zeros((len(rows), k), np.int64)
        cosines = np.zeros((len(rows), k), np.float32)
        for start in range(0, len(rows), _QUERIES):
            cut = slice(start, start + _QUERIES)
            found[cut], cosines[cut] = self._search(rows[cut], k)
        return found, cosines

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
        widen(self.index, wanted)
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
            raise CacheError(
                f"rows {shown(outside.tolist())} are no items; rows are 1..{len(present) - 1}"
            )
        absent = rows[~present[rows]]
        if len(absent):
            raise CacheError(
                f"rows {shown(absent.tolist())} have no {self._table.modality} vector, so no "
                "neighbours; ask for rows where table.present is True"
            )
        if not 1 <= k < max(self._count, 1):
            raise CacheError(
                f"k {k} neighbours: {self._count} items have a vector; use 1 to "
                f"{max(self._count - 1, 0)}"
            )


def index_of(
    table: EmbeddingTable,
    folder: Path | None,
    *,
    kind: str | None = None,
    exact_below: int = EXACT_BELOW,
) -> NeighbourIndex:
    """The index of a table.

    Args:
        table: The vectors.
        folder: The table's folder in its store; None if it is in no cache.
        kind: FAISS factory string; by default by the number of vectors.
        exact_below: Number of vectors from which on the default is approximate.

    Returns:
        The index, saved where the folder can be written.

    Raises:
        CacheError: The factory string does not fit the vectors.
    """
    if folder is None or not isinstance(table.vectors, StoredVectors):
        return NeighbourIndex.build(table, kind=kind, exact_below=exact_below)
    count = int(table.present.sum())
    wanted = kind or default_kind(count, exact_below=exact_below)
    others = [manifest.parent for manifest in table_manifests(folder.parents[1])]
    for source in dict.fromkeys([folder, *others]):
        index = _carried_over(
            table, table.vectors, source, wanted, any_kind=kind is None, folder=folder
        )
        if index is not None:
            break
    else:
        source, index = None, _built(table, wanted, folder)
    if source != folder or index.grown:
        try:
            _save(index, table.vectors, folder)
        except OSError as error:
            _logger.info("the index is not kept: %s", error)
    return index


def _built(table: EmbeddingTable, kind: str, folder: Path) -> NeighbourIndex:
    try:
        return NeighbourIndex.build(table, kind=kind, folder=folder)
    except OSError as error:
        _logger.info("the index is made in memory: %s", error)
        return NeighbourIndex.build(table, kind=kind)


def index_damage(folder: Path) -> str | None:
    """What is wrong with a table's saved index, if there is one and something is."""
    try:
        for name, checksum in read_json(folder / "index.json", "files")["files"].items():
            if file_checksum(folder / name) != checksum:
                return f"{name}: its checksum differs"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return f"unreadable ({error})" if (folder / "index.json").exists() else None
    return None


def remove_index(folder: Path) -> None:
    """Removes a table's index; it is built again when it is wanted."""
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)


def _carried_over(
    table: EmbeddingTable,
    vectors: StoredVectors,
    source: Path,
    wanted: str,
    *,
    any_kind: bool,
    folder: Path,
) -> NeighbourIndex | None:
    """The index saved in a folder, made to fit a table; None if that cannot be.

    Inverted lists in the table's own ``folder`` stay on the disk, as the vectors do: the system
    reads what searches touch, and all processes share it. Those to be changed, or saved elsewhere,
    are read, or where they are a file of their own merged with the new ones.
    """
    try:
        known = read_json(source / "index.json")
        kind, trained_on = str(known["kind"]), int(known["trained_on"])
        similar = kind == wanted or (any_kind and EXACT not in (kind, wanted))
        lists = source / LISTS if LISTS in known["files"] else None
        wanted_format = LISTS_FORMAT if lists else INDEX_FORMAT
        if known["format"] != wanted_format or known["dim"] != table.dim or not similar:
            return None
        places = np.load(source / "index.npy", allow_pickle=False)[1]
        rows, added = _matched(vectors, places, known["shards"])
        gone = int((rows == 0).sum())
        if (gone or added.any()) and (
            kind == EXACT
            or max(gone / len(rows), added.sum() / len(rows)) > _CHANGED_SHARE
            or table.present.sum() > _GROWTH * trained_on
        ):
            return None
        file = source / "index.faiss"
        if index_damage(source):
            return None
        if source == folder and not added.any():
            stored = read_mapped(file, lists=lists)
        else:
            stored = read_mapped(file, lists=lists) if lists else faiss.read_index(str(file))
        if stored.ntotal != len(rows) or stored.d != table.dim:
            return None
        index = NeighbourIndex(table, stored, rows, kind=kind, trained_on=trained_on)
        index.lists_checksum = known["files"].get(LISTS)
        if lists and (source != folder or added.any()):
            index.index = read_empty(file)
            index.add_on_disk(added, folder, before=stored)
        elif added.any():
            index.add(added)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError):
        return None
    return index


def _matched(
    vectors: StoredVectors, places: NDArray[np.int64], shards: dict[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows ``[n]`` for the positions' places, 0 where gone; and ``[I+1]`` which rows are new."""
    same = [
        number
        for number, file in vectors.files.items()
        if shards.get(str(number)) == file.info.checksum
    ]
    held = np.where(np.isin(places >> 32, same) & (places >= 0), places, -1)
    here = vectors.places
    added = here >= 0
    present = np.flatnonzero(added)
    # several rows may share a place, and a position then belongs to one of them
    old = pl.DataFrame({"place": held, "position": np.arange(len(held))}).filter(
        pl.col("place") >= 0
    )
    new = pl.DataFrame({"place": here[present], "row": present})
    nth = pl.int_range(pl.len()).over("place").alias("nth")
    pairs = old.with_columns(nth).join(new.with_columns(nth), on=["place", "nth"])
    rows = np.zeros(len(places), np.int64)
    rows[pairs["position"].to_numpy()] = pairs["row"].to_numpy()
    added[rows] = False
    return rows, added


def _save(index: NeighbourIndex, vectors: StoredVectors, folder: Path) -> None:
    """Writes an index into a table's folder; OSError where it cannot."""
    remove_temporaries(folder)
    files: dict[str, int] = {}  # of what this process writes: another may be writing here too
    with replacing(folder / "index.faiss") as temporary:
        try:
            faiss.write_index(index.index, str(temporary))
        except RuntimeError as error:  # how FAISS reports whatever a file system refuses
            raise OSError(f"FAISS cannot write it: {error}") from error
        files["index.faiss"] = file_checksum(temporary)
    with replacing(folder / "index.npy") as temporary:
        places = np.where(index.rows > 0, vectors.places[index.rows], -1)
        with temporary.open("wb") as file:
            np.save(file, np.stack([index.rows, places]), allow_pickle=False)
        files["index.npy"] = file_checksum(temporary)
    if index.lists_checksum is not None:
        files[LISTS] = index.lists_checksum
    else:
        (folder / LISTS).unlink(missing_ok=True)
    identity = {
        "format": INDEX_FORMAT if index.lists_checksum is None else LISTS_FORMAT,
        "kind": index.kind,
        "dim": vectors.shape[1],
        "trained_on": index.trained_on,
        "shards": {number: file.info.checksum for number, file in vectors.files.items()},
        "files": files,
    }
    write_sealed_json(folder / "index.json", identity)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1; a zero row stays zero, its cosine with anything 0."""
    wide = vectors.astype(np.float32, copy=True)
    # scaled by the largest entry first, so that squares neither overflow nor vanish
    for scale in (np.abs(wide).max(axis=1, keepdims=True, initial=0), None):
        norm = np.linalg.norm(wide, axis=1, keepdims=True) if scale is None else scale
        np.divide(wide, norm, out=wide, where=norm > 0)
    return wide
