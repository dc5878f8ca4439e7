"""Search: what a person types to rows of the catalogue, by id and by words of the title."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.data.items import ItemTable

_MOST_CHARACTERS = 100  # of a query; the rest is not read


class Search:
    """Finds items of a catalogue, whatever the case.

    >>> from mmkd import ItemTable
    >>> from mmkd.serve.search import Search
    >>> items = ItemTable(
    ...     ids=["", "A1", "B7", "C3"], titles=["", "Red teapot", "A pot of red", "Cup"],
    ...     text=[None] * 4, image_path=[None] * 4, attributes=[[]] * 4)
    >>> find = Search(items)
    >>> [items.titles[row] for row in find("red pot")], find("b7").tolist()
    (['Red teapot', 'A pot of red'], [2])

    Args:
        items: The catalogue.
    """

    def __init__(self, items: ItemTable) -> None:
        lowered = items.frame.select(pl.col("id", "title").str.to_lowercase())
        self._ids, self._titles = lowered["id"], lowered["title"]

    def __call__(self, query: str, *, limit: int = 12) -> NDArray[np.int64]:
        """Rows of the items that a query names, [n] int64 in 1..I.

        An item whose id it is comes first, then titles that begin with it, then those that hold all
        of its words; of equals the first in the catalogue.

        Args:
            query: Any text; nothing is found by an empty one.
            limit: The most rows.
        """
        text = " ".join(query[:_MOST_CHARACTERS].lower().split())
        if not text:
            return np.empty(0, dtype=np.int64)
        holds = pl.repeat(True, len(self._titles), eager=True)
        for word in text.split():
            holds &= self._titles.str.contains(word, literal=True)
        orders = (self._ids == text, self._titles.str.starts_with(text), holds)
        rows = np.concatenate([order.arg_true().to_numpy() for order in orders]).astype(np.int64)
        _, first = np.unique(rows, return_index=True)
        found = rows[np.sort(first)]
        return found[found > 0][:limit]
