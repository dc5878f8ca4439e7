"""Indexes on disk: read back, carried over from an earlier catalogue, or built and saved.

Beside a table's manifest: ``index.faiss``, ``index.npy`` (``[2, n]`` int64: row and place in the
shards of each position) and ``index.json``, written last. A vector is known by its place, so a
catalogue that grew or changed a little takes over an earlier one's index: what is new is added,
what is gone is left out of the answers.
"""

import json
import logging
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.embedding_cache.atomic import remove_temporaries, replacing, write_text
from mmkd.embedding_cache.checksum import file_checksum
from mmkd.embedding_cache.errors import CacheError
from mmkd.embedding_cache.index import NeighbourIndex
from mmkd.embedding_cache.index_kind import EXACT, EXACT_BELOW, default_kind
from mmkd.embedding_cache.stores import table_manifests
from mmkd.embedding_cache.table import EmbeddingTable
from mmkd.embedding_cache.vectors import StoredVectors

_logger = logging.getLogger(__name__)
INDEX_FORMAT = 2
# beyond these a carried-over index is built anew
_CHANGED_SHARE = 0.2
_GROWTH = 2


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
    others = [manifest.parent for manifest in table_manifests(folder.parent)]
    for source in dict.fromkeys([folder, *others]):
        index = _carried_over(table, table.vectors, source, wanted, any_kind=kind is None)
        if index is not None:
            break
    else:
        source, index = None, NeighbourIndex.build(table, kind=wanted)
    if source != folder:
        try:
            _save(index, table.vectors, folder)
        except CacheError as error:
            _logger.info("the index is not kept: %s", error)
    return index


def index_damage(folder: Path) -> str | None:
    """What is wrong with a table's saved index, if there is one and something is."""
    if not (folder / "index.json").exists():
        return None
    try:
        known = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        for name, checksum in known["files"].items():
            if file_checksum(folder / name) != checksum:
                return f"{name}: its checksum differs"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return f"unreadable ({error})"
    return None


def remove_index(folder: Path) -> None:
    """Removes a table's index; it is built again when it is wanted."""
    for name in ("index.json", "index.faiss", "index.npy"):
        (folder / name).unlink(missing_ok=True)


def _carried_over(
    table: EmbeddingTable, vectors: StoredVectors, source: Path, wanted: str, *, any_kind: bool
) -> NeighbourIndex | None:
    """The index saved in a folder, made to fit a table; None if that cannot be."""
    try:
        known: dict[str, Any] = json.loads((source / "index.json").read_text(encoding="utf-8"))
        kind, trained_on = str(known["kind"]), int(known["trained_on"])
        similar = kind == wanted or (any_kind and EXACT not in (kind, wanted))
        if known["format"] != INDEX_FORMAT or known["dim"] != table.dim or not similar:
            return None
        if file_checksum(source / "index.npy") != known["files"]["index.npy"]:
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
        if file_checksum(source / "index.faiss") != known["files"]["index.faiss"]:
            return None
        stored = faiss.read_index(str(source / "index.faiss"))
        if stored.ntotal != len(rows) or stored.d != table.dim:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError):
        return None
    index = NeighbourIndex(table, stored, rows, kind=kind, trained_on=trained_on)
    if added.any():
        index.add(added)
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
    present = np.flatnonzero(vectors.places >= 0)
    # several rows may share a place, and a position then belongs to one of them
    old = pl.DataFrame({"place": held, "position": np.arange(len(held))}).filter(
        pl.col("place") >= 0
    )
    new = pl.DataFrame({"place": vectors.places[present], "row": present})
    nth = pl.int_range(pl.len()).over("place").alias("nth")
    pairs = old.with_columns(nth).join(new.with_columns(nth), on=["place", "nth"])
    rows = np.zeros(len(places), np.int64)
    rows[pairs["position"].to_numpy()] = pairs["row"].to_numpy()
    added = vectors.places >= 0
    added[rows] = False
    return rows, added


def _save(index: NeighbourIndex, vectors: StoredVectors, folder: Path) -> None:
    """Writes an index into a table's folder.

    Raises:
        CacheError: The folder cannot be written.
    """
    remove_temporaries(folder)
    with replacing(folder / "index.faiss") as temporary:
        try:
            faiss.write_index(index.index, str(temporary))
        except RuntimeError as error:  # how FAISS reports whatever a file system refuses
            raise OSError(f"FAISS cannot write it: {error}") from error
    with replacing(folder / "index.npy") as temporary, temporary.open("wb") as file:
        places = np.where(index.rows > 0, vectors.places[index.rows], -1)
        np.save(file, np.stack([index.rows, places]), allow_pickle=False)
    identity = {
        "format": INDEX_FORMAT,
        "kind": index.kind,
        "dim": vectors.shape[1],
        "trained_on": index.trained_on,
        "shards": {number: file.info.checksum for number, file in vectors.files.items()},
        "files": {name: file_checksum(folder / name) for name in ("index.faiss", "index.npy")},
    }
    write_text(folder / "index.json", json.dumps(identity) + "\n")
