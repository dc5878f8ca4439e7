"""Which FAISS index: by the number of vectors, or as a factory string says.

From a number of vectors to a factory string, and from that to an empty index of
inner products. How the choice was measured is in ``docs/cache.md``.
"""

import math
import re
from typing import Any

import faiss

from mmkd.embedding_cache.errors import CacheError

EXACT_BELOW = 50_000
EXACT = "Flat"
_POINTS_A_LIST = 39  # below it FAISS warns that the lists' centres are guesses
_TRAINING_ROWS = 65_536
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


def check_factory(kind: str) -> None:
    """Builds an empty index of some width that the factory string's parts divide.

    Raises:
        CacheError: FAISS does not know it, or it maps ids itself.
    """
    parts = [int(number) for number in re.findall(r"PQ(\d{1,4})", kind) if int(number)]
    width = 8 * math.lcm(*parts) if parts else 64
    empty_index(kind, width if width <= 65_536 else 8 * max(parts))


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


def training_rows(index: Any, count: int) -> int:
    """How many of ``count`` vectors an index is trained on: bounded, whatever the catalogue."""
    return 0 if index.is_trained else min(count, _TRAINING_ROWS)


def set_breadth(index: Any, candidates: int) -> None:
    """Sets how far a search goes, for so many candidates."""
    inner: Any = faiss.downcast_index(index.index if hasattr(index, "chain") else index)
    if hasattr(inner, "nlist"):
        inner.nprobe = min(inner.nlist, max(128, inner.nlist // 16))
    elif hasattr(inner, "hnsw"):
        inner.hnsw.efSearch = max(_SEARCH_BREADTH, 2 * candidates)
