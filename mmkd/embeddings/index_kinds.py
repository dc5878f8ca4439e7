"""Kinds of FAISS index: which for how many vectors; made empty by factory string, trained.

How the kinds were chosen is in ``docs/cache.md``.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mmkd.errors import CacheError

_TRAINING_ROWS, _TRAINED_A_LIST = 65_536, 64  # vectors that lists' centres are found on, at least
EXACT_BELOW = 50_000
EXACT = "Flat"
_POINTS_A_LIST = 39  # below it FAISS warns that the lists' centres are guesses
_SEARCH_BREADTH = 128


def default_kind(count: int, *, exact_below: int = EXACT_BELOW) -> str:
    """The factory string for a catalogue.

    Below ``exact_below`` vectors all are compared. Above, they are parted into about 4 sqrt(n)
    lists and coded in a byte a component: of what was measured that lost least, was built soonest,
    and suits any width. The codes only choose candidates: these are compared exactly.

    Args:
        count: Number of vectors.
        exact_below: Where approximation begins.

    Returns:
        Such as ``IVF1024,SQ8``.
    """
    if count < exact_below:
        return EXACT
    most = max(1, min(4 * math.isqrt(count), count // _POINTS_A_LIST))
    return f"IVF{2 ** (most.bit_length() - 1)},SQ8"


def lists_of(index: Any) -> int:
    """How many inverted lists a FAISS index has; 0 where it has none."""
    try:
        return int(faiss.extract_index_ivf(index).nlist)
    except RuntimeError:
        return 0


def kind_problems(kind: str) -> list[str]:
    """A line if FAISS does not know a factory string or it maps ids itself; any width will do."""
    parts = [int(number) for number in re.findall(r"PQ(\d{1,4})", kind) if int(number)]
    width = 8 * math.lcm(*parts) if parts else 64
    try:
        empty_index(kind, width if width <= 65_536 else 8 * max(parts))
    except CacheError as error:
        return [f"index: {str(error).removeprefix('cache.index ')}"]
    return []


def empty_index(kind: str, dim: int) -> Any:
    """An empty index of inner products.

    Raises:
        CacheError: FAISS does not know the factory string or it does not fit the width.
    """
    try:
        index: Any = faiss.index_factory(dim, kind, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        told = str(error).strip().splitlines()[-1].rpartition("Error: ")[2][:120]
        raise CacheError(
            f"cache.index {kind!r} is no FAISS index of width {dim} ({told}); leave it out, or use "
            "a factory string such as IVF1024,PQ48x8 or HNSW32"
        ) from error
    if "IDMap" in kind:
        raise CacheError(f"cache.index {kind!r}: leave IDMap out; rows are mapped already")
    return index


def train_index(
    index: Any,
    kind: str,
    rows: NDArray[np.int64],
    read: Callable[[NDArray[np.int64]], NDArray[np.float32]],
) -> None:
    """Trains an empty index, where its kind asks for it, on a bounded draw of rows.

    Args:
        index: As `empty_index` made it of ``kind``.
        kind: Its factory string.
        rows: ``[n]`` that may be drawn.
        read: Rows ``[m]``, rising, to vectors ``[m, dim]``.

    Raises:
        CacheError: There are too few vectors for the factory string.
    """
    if index.is_trained:
        return
    # bounded, whatever the catalogue, but enough for each list
    wanted = min(len(rows), max(_TRAINING_ROWS, _TRAINED_A_LIST * lists_of(index)))
    sample = np.random.default_rng(0).choice(rows, wanted, replace=False)
    try:
        index.train(read(np.sort(sample)))
    except RuntimeError as error:
        told = str(error).strip().splitlines()[-1][:120]
        raise CacheError(
            f"cache.index {kind!r} cannot be trained on {len(rows)} vectors ({told}); "
            "use fewer lists, or leave it out"
        ) from error


def widen(index: Any, wanted: int) -> None:
    """Has an approximate index look far enough for ``wanted`` candidates."""
    inner: Any = index.index if hasattr(index, "chain") else index
    inner = faiss.downcast_index(inner)
    if hasattr(inner, "nlist"):
        inner.nprobe = min(inner.nlist, max(_SEARCH_BREADTH, inner.nlist // 16))
    elif hasattr(inner, "hnsw"):
        inner.hnsw.efSearch = max(_SEARCH_BREADTH, 2 * wanted)
