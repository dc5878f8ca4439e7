"""Inverted lists on the disk: made in pieces that fit in memory, merged and mapped by FAISS.

From a trained index and vectors to the index whose lists are in a file of their own. They are those
that adding the vectors in memory makes, in the same order, while memory holds one piece.
"""

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mmkd.files import file_checksum, replacing

PIECE_BYTES = 512 * 1024**2  # of lists that are held in memory
_MAPPED = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
_ID_BYTES = 8
_faiss: Any = faiss  # its types leave out what SWIG adds


def too_large(index: Any, count: int) -> bool:
    """Whether the lists of so many vectors are to be made on the disk, as this kind's can be."""
    inner: Any = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    if not isinstance(inner, faiss.IndexIVF):
        return False
    plain = isinstance(_faiss.downcast_InvertedLists(inner.invlists), faiss.ArrayInvertedLists)
    return plain and count * (inner.code_size + _ID_BYTES) > PIECE_BYTES


def fill_on_disk(
    index: Any,
    parts: Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]],
    file: Path,
    *,
    before: Any = None,
) -> int:
    """Adds vectors to an index whose lists then are a file, and mapped from it.

    A saved index names the file without its folder. FAISS reads both with
    ``IO_FLAG_ONDISK_SAME_DIR``; `read_mapped` does it in silence.

    Args:
        index: Trained and empty.
        parts: Ids ``[n]`` and vectors ``[n, D]``, some at a time.
        file: Where the lists go; beside it is room for the pieces.
        before: An index like it whose lists come first.

    Returns:
        The file's checksum, by which it is known from one that another process writes.

    Raises:
        OSError: The file cannot be written.
    """
    pieces = [] if before is None else [before]
    piece = faiss.clone_index(index)
    for ids, vectors in parts:
        piece.add_with_ids(vectors, ids)
        if too_large(piece, piece.ntotal):
            pieces.append(_on_disk(piece, file.parent))
            piece = faiss.clone_index(index)
    pieces.append(piece)
    ivf = faiss.extract_index_ivf(index)
    each = _faiss.InvertedListsPtrVector()
    for one in pieces:
        each.push_back(faiss.extract_index_ivf(one).invlists)
    with replacing(file) as temporary, _standard_output_kept():
        size = sum(one.ntotal for one in pieces) * (ivf.code_size + _ID_BYTES)
        _require_room(temporary, size)
        try:
            lists = _faiss.OnDiskInvertedLists(ivf.nlist, ivf.code_size, str(temporary))
            total = lists.merge_from_multiple(each.data(), each.size(), False)
        except RuntimeError as error:  # how FAISS reports whatever a file system refuses
            raise OSError(f"FAISS cannot write it: {error}") from error
        checksum = file_checksum(temporary)
    lists.filename = file.name
    index.ntotal = ivf.ntotal = total
    ivf.replace_invlists(lists, True)
    lists.this.disown()  # the index's
    return checksum


def read_mapped(path: Path, *, lists: Path | None = None) -> Any:
    """A saved index, its inverted lists mapped: from its own file, or from that of `fill_on_disk`.

    Raises:
        RuntimeError: FAISS cannot read it.
    """
    if lists is None:
        return faiss.read_index(str(path), _MAPPED)
    index = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_IVF_DATA)
    found = _faiss.downcast_InvertedLists(faiss.extract_index_ivf(index).invlists)
    if not isinstance(found, faiss.OnDiskInvertedLists):
        raise RuntimeError(f"{path}: has its inverted lists in itself")
    found.filename, found.read_only = str(lists), True
    found.do_mmap()
    return index


def read_empty(path: Path) -> Any:
    """A saved index as it was before anything was added, trained."""
    index = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_IVF_DATA)
    ivf = faiss.extract_index_ivf(index)
    lists = _faiss.ArrayInvertedLists(ivf.nlist, ivf.code_size)
    ivf.replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = ivf.ntotal = 0
    return index


@contextmanager
def _standard_output_kept() -> Iterator[None]:
    """FAISS says what it resizes on the standard output, which is a command's answer."""
    if sys.stdout is not None:  # of a process without a terminal
        sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # what C has yet to write
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _require_room(file: Path, size: int) -> None:
    """OSError where a file of so many bytes finds no room: FAISS maps it, and would be killed."""
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, size)


def _on_disk(piece: Any, folder: Path) -> Any:
    """A piece whose lists are mapped from a file that goes with it."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".index.", suffix=".tmp") as file:
        try:
            faiss.write_index(piece, file.name)
            return read_mapped(Path(file.name))
        except RuntimeError as error:
            raise OSError(f"FAISS cannot write it: {error}") from error
