"""External ids: a column of any type to text, and text to positions among the ids that are known.

From the columns of a user's files to the rows of the catalogue, of the users and of vectors that
were computed elsewhere. An id stays text from first to last: 007 is not 7.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl
from numpy.typing import NDArray

# One id among a million is searched for in 10 us, all are joined in 0.2 s.
_JOIN_FROM = 0.001
# difflib takes 10 us a candidate.
_CANDIDATES = 2_000


def ids_as_text(column: pl.Series) -> pl.Series | None:
    """Ids as they are written; whole numbers become their decimal digits.

    Args:
        column: [n] text, categories or whole numbers, also whole numbers that a gap in their column
            turned into floats.

    Returns:
        [n] text, null where an id is missing; None for a type that cannot be ids.
    """
    dtype = column.dtype
    if dtype.is_float():
        values = column.fill_nan(None)
        whole = values.cast(pl.Int64, strict=False)
        same = (whole.cast(dtype) == values) | values.is_null()
        return whole.cast(pl.String) if same.all() else None
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null) or dtype.is_integer():
        return column.cast(pl.String)
    return None


def repeated(ids: pl.Series) -> list[str]:
    """The ids that occur more than once, each once, in the order of their first repeat."""
    if ids.n_unique() == len(ids):
        return []
    return ids.filter(~ids.is_first_distinct()).unique(maintain_order=True).to_list()


class IdIndex:
    """Positions of ids among those that are known.

    Args:
        known: [N] text, each id once.
    """

    def __init__(self, known: pl.Series) -> None:
        self._known = known

    def find(self, ids: pl.Series | Sequence[str]) -> NDArray[np.int64]:
        """Position of each id in 0..N-1, [n] int64; -1 where it is not known."""
        if len(ids) < _JOIN_FROM * len(self._known):
            return np.array([self._search(one) for one in ids], dtype=np.int64)
        right = pl.DataFrame({"id": self._known}).with_row_index("position")
        left = pl.DataFrame({"id": ids}, schema={"id": pl.String})
        joined = left.join(right, on="id", how="left", maintain_order="left", validate="m:1")
        return joined["position"].cast(pl.Int64).fill_null(-1).to_numpy().astype(np.int64)

    def near(self, name: str) -> list[str]:
        """What may have been meant: all ids of a few, of many those that begin most like it."""
        if len(self._known) <= _CANDIDATES:
            return self._known.to_list()
        start = max(self._place(name) - _CANDIDATES // 2, 0)
        return self._known.gather(self._order[start : start + _CANDIDATES]).to_list()

    @cached_property
    def _order(self) -> NDArray[np.uint32]:
        """The ids' positions in the order of their text, [N]."""
        return self._known.arg_sort().to_numpy()

    def _place(self, name: str) -> int:
        return bisect_left(self._order, name, key=lambda position: self._known[int(position)])

    def _search(self, name: str) -> int:
        place = self._place(name)
        if place == len(self._order):
            return -1
        position = int(self._order[place])
        return position if self._known[position] == name else -1
