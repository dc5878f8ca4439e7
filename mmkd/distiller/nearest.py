"""Nearest rows by cosine, of equally near ones random ones: FAISS proposes, ties are drawn."""

from collections.abc import Iterable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

EXACT_BELOW = 50_000  # rows; above, FAISS searches a part of the lists
_TIE = 1e-6  # cosines of float32 vectors differ by rounding up to here
_TIED_AT_ONCE = 32  # queries whose cosines with all rows are held at once


def nearest(
    unit: NDArray[np.float32],
    queries: NDArray[np.int64],
    near: int,
    rng: np.random.Generator,
    among: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Each query itself and the rows nearest to it, in no order.

    FAISS lists ties by their place, so that where many rows are alike, as those of a placeholder's
    picture, the first would be everybody's neighbours. Each query is given random ones instead, up
    to 50,000 rows.

    Args:
        unit: [n, d] rows of length 1.
        queries: [q] their places.
        near: Below n.
        rng: Draws among ties.
        among: [m] the places that may be found, m above ``near``; None means all. Then a query is
            found with its nearest only where it is one of them or has ties.

    Returns:
        [q, near + 1] places, -1 where an approximate search found none.
    """
    places = np.arange(len(unit)) if among is None else among
    rows = unit if among is None else unit[among]
    exact = len(rows) < EXACT_BELOW
    kind = "Flat" if exact else f"IVF{2 ** int(np.log2(4 * np.sqrt(len(rows))))},Flat"
    index: Any = faiss.index_factory(rows.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(rows)
    index.add(rows)
    if not exact:
        index.nprobe = max(16, index.nlist // 32)
        found: NDArray[np.int64] = index.search(unit[queries], near + 1)[1]
        return np.where(found < 0, -1, places[found])
    cosine, wider = index.search(unit[queries], near + 2)  # usually itself first
    # behind the last row it finds nothing
    tied = np.flatnonzero((cosine[:, -2] - cosine[:, -1] < _TIE) & (wider[:, -1] >= 0))
    found = np.where(wider[:, :-1] < 0, -1, places[wider[:, :-1]])
    for start in range(0, len(tied), _TIED_AT_ONCE):
        part = tied[start : start + _TIED_AT_ONCE]
        cosine = unit[queries[part]] @ rows.T
        found[part] = _with_random_ties(cosine, queries[part], places, near, rng)
    return found


def nearest_of_blocks(
    blocks: Iterable[NDArray[np.float32]], queries: NDArray[np.float32], near: int
) -> NDArray[np.int64]:
    """As `nearest` of few queries among many rows, of which a block is held; of ties the first.

    Exact: of so few queries it takes less than an index's training.

    Args:
        blocks: Some rows [b, d] of length 1 after the others.
        queries: [q, d] of length 1, each a row too.
        near: Below n.

    Returns:
        [q, near + 1] places among all rows.
    """
    best = np.full((len(queries), near + 1), -np.inf, np.float32)
    places = np.full(best.shape, -1, np.int64)
    first = 0
    for block in blocks:
        index = faiss.IndexFlatIP(block.shape[1])
        index.add(block)
        cosine, found = index.search(queries, min(near + 1, len(block)))
        best = np.concatenate([best, cosine], axis=1)
        places = np.concatenate([places, found + first], axis=1)
        kept = np.argsort(-best, axis=1, kind="stable")[:, : near + 1]
        best = np.take_along_axis(best, kept, axis=1)
        places = np.take_along_axis(places, kept, axis=1)
        first += len(block)
    return places


def _with_random_ties(
    cosines: NDArray[np.float32],
    queries: NDArray[np.int64],
    places: NDArray[np.int64],
    near: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Of cosines [q, m] with rows at ``places`` [m]."""
    found = np.empty((len(queries), near + 1), dtype=np.int64)
    for row, (query, cosine) in enumerate(zip(queries, cosines, strict=True)):
        cosine[places == query] = -np.inf
        last = np.partition(cosine, -near)[-near]
        nearer = np.flatnonzero(cosine > last + _TIE)
        ties = np.flatnonzero(np.abs(cosine - last) <= _TIE)
        drawn = rng.choice(ties, size=near - len(nearer), replace=False)
        found[row] = np.concatenate([[query], places[nearer], places[drawn]])
    return found
