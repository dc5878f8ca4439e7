"""Baselines: what training must beat, each a scorer of histories [B, L] for ``Evaluator.ranks``.

From a split's training events alone to ``Popularity``, ``Transition`` (a first-order Markov chain)
and ``ItemKNN`` (Sarwar et al., WWW 2001; truncated as by Deshpande and Karypis, TOIS 2004); from an
encoder's vectors, without any event, to ``ContentKNN``. Nothing of shape items x items is ever
dense: similarities are made a block of items at a time, and each item keeps its k nearest.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from mmkd.data.splits import SequenceSplit
from mmkd.distiller import TeacherTable, unit_rows
from mmkd.errors import at_least, checked

_BLOCK_PAIRS = 20_000_000  # item pairs counted before they are cut to the nearest
_EXACT_IN_FLOAT32 = 2**22  # whole numbers up to here keep a distance that is never rounded away
_NO_VECTOR = -2.0  # below every cosine
_ROWS = 8192  # of an encoder's vectors, compared at once
_KEPT_BYTES = 2**28  # an encoder's vectors up to here are read once and not for every batch


class Popularity:
    """Every history gets the same list: what has the most training events.

    >>> import numpy as np
    >>> import torch
    >>> from mmkd import Popularity, SequenceSplit
    >>> from mmkd.data import Cases
    >>> last = Cases(user=np.arange(2), position=np.array([2, 1]))
    >>> split = SequenceSplit(
    ...     items=np.array([1, 2, 3, 1, 3]), offsets=np.array([0, 3, 5]),
    ...     train_end=np.array([2, 1]), valid=last, test=last, item_count=3)
    >>> Popularity(split)(torch.tensor([[0, 3]]))  # of padding and three items
    tensor([[0., 2., 1., 0.]])

    Args:
        split: Only its training events are read.
    """

    def __init__(self, split: SequenceSplit) -> None:
        counts = split.train_counts()
        self._scores = torch.from_numpy(counts).to(_exact(int(counts.max())))

    def __call__(self, histories: Tensor) -> Tensor:
        """Score histories [B, L]: [B, I+1], the training events of each item."""
        return self._scores.to(histories.device).expand(len(histories), -1)


class Transition:
    """What followed the last item most often in training; among equals the more popular.

    Behind all items that ever followed it come the others, by popularity: the whole list where
    the last item trains nothing, or the history is empty.

    >>> import numpy as np
    >>> import torch
    >>> from mmkd import SequenceSplit, Transition
    >>> from mmkd.data import Cases
    >>> last = Cases(user=np.arange(2), position=np.array([3, 2]))
    >>> split = SequenceSplit(
    ...     items=np.array([1, 2, 1, 3, 1, 2, 3]), offsets=np.array([0, 4, 7]),
    ...     train_end=np.array([3, 2]), valid=last, test=last, item_count=3)
    >>> Transition(split)(torch.tensor([[3, 1], [1, 3]])).argsort(descending=True)[:, :2]
    tensor([[2, 1],
            [1, 2]])

    Args:
        split: Only its training events are read; an event follows the one before it where both
            train.
    """

    def __init__(self, split: SequenceSplit) -> None:
        trains = split.is_train()
        user = np.repeat(np.arange(split.user_count), np.diff(split.offsets))
        pair = np.flatnonzero(trains[:-1] & trains[1:] & (user[:-1] == user[1:]))
        size = split.item_count + 1
        self._follows = sparse.csr_array(  # equal pairs are added up
            (np.ones(len(pair)), (split.items[pair], split.items[pair + 1])), shape=(size, size)
        )
        popular, levels = _popularity_levels(split)
        most = int(self._follows.data.max(initial=0)) + 1
        self._popular = torch.from_numpy(popular).to(_exact(most * levels))

    def __call__(self, histories: Tensor) -> Tensor:
        """Score histories [B, L]: [B, I+1], the count of each pair and below 1 the popularity."""
        last = histories[:, -1].cpu().numpy()
        return _above(self._popular.to(histories.device), self._follows[last], add=True)


class ItemKNN:
    """Items whose buyers are those of the history's items: cosines of the training matrix, added.

    The cosine of items i and j, with n(i) users each, is ``n(i, j) / (sqrt(n(i) n(j)) +
    shrinkage)``. An item counts its k nearest only. A candidate's score is the sum over the
    history's distinct items; one that is near none of them comes behind all others, by popularity.

    >>> import numpy as np
    >>> import torch
    >>> from mmkd import ItemKNN, SequenceSplit
    >>> from mmkd.data import Cases
    >>> last = Cases(user=np.arange(3), position=np.array([2, 2, 0]))
    >>> split = SequenceSplit(
    ...     items=np.array([1, 2, 3, 1, 2, 3, 3]), offsets=np.array([0, 3, 6, 7]),
    ...     train_end=np.array([2, 2, 1]), valid=last, test=last, item_count=3)
    >>> scores = ItemKNN(split, neighbours=2, shrinkage=1.0)(torch.tensor([[0, 1]]))
    >>> scores[0, 2].item(), scores.argmax().item()  # two users of two have both: 2 / (2 + 1)
    (0.6666666865348816, 2)

    Args:
        split: Only its training events are read.
        neighbours: k; among equally near ones the lower rows.
        shrinkage: Added to the denominator, so that few common users count less.

    Raises:
        ValueError: `neighbours` is below 1 or `shrinkage` below 0.
    """

    @checked
    def __init__(
        self, split: SequenceSplit, *, neighbours: int = 100, shrinkage: float = 10.0
    ) -> None:
        self._near = _nearest(_bought(split), neighbours, shrinkage)
        popular, levels = _popularity_levels(split)
        self._popular = torch.from_numpy(popular - 1.0).to(_exact(levels))  # [I+1] in -1..0

    @staticmethod
    def check(**options: Any) -> list[str]:
        """The problems of any of the constructor's options, a line each."""
        return [
            *at_least(1, neighbours=options.get("neighbours")),
            *at_least(0, "0 shrinks nothing", shrinkage=options.get("shrinkage")),
        ]

    @staticmethod
    def pair_count(split: SequenceSplit) -> int:
        """At most how many pairs of one user's items building it counts: its time."""
        return int(np.square(split.train_end).sum())

    def __call__(self, histories: Tensor) -> Tensor:
        """Score histories [B, L]: [B, I+1], sums of cosines and below 0 the popularity."""
        taken = histories.cpu().numpy()
        row, column = np.nonzero(taken)
        size = self._near.shape[0]
        known = np.unique(row * size + taken[row, column])
        matrix = sparse.csr_array(
            (np.ones(len(known)), (known // size, known % size)), shape=(len(taken), size)
        )
        return _above(self._popular.to(histories.device), matrix @ self._near)


class ContentKNN:
    """The nearest of a history's last item by an encoder's vectors; needs no event.

    Scores are cosines. Where the last item has no vector, the latest that has one is asked; without
    any, all items are equal. Items without a vector come last, as does the item that is asked.

    >>> import numpy as np
    >>> import torch
    >>> from mmkd import ContentKNN, EmbeddingTable
    >>> vectors = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=np.float32)
    >>> table = EmbeddingTable(vectors, np.array([False, True, True, True]), "mine", "text", "1")
    >>> ContentKNN(table)(torch.tensor([[2, 1]])).argmax()
    tensor(3)

    Args:
        table: The encoder's vectors of the catalogue.
    """

    def __init__(self, table: TeacherTable) -> None:
        self._table = table
        size = len(table.present) * table.vectors.shape[1] * 4
        self._kept = list(self._unit_rows()) if size <= _KEPT_BYTES else None

    def __call__(self, histories: Tensor) -> Tensor:
        """Score histories [B, L]: [B, I+1] cosines to the last item."""
        taken, device = histories.cpu().numpy(), histories.device
        has = self._table.present[taken][:, ::-1]  # [B, L], latest first
        latest = taken.shape[1] - 1 - has.argmax(1)
        asked = np.where(has.any(1), taken[np.arange(len(taken)), latest], 0)
        distinct, where = np.unique(asked, return_inverse=True)
        vectors = torch.from_numpy(np.asarray(self._table.vectors[distinct])).to(device)
        queries = unit_rows(vectors)  # [Q, D]
        scores = queries.new_empty(len(distinct), len(self._table.present))
        for rows, unit in self._kept or self._unit_rows():
            scores[:, rows] = queries @ unit.to(device).T  # [Q, n]
        scores[:, torch.from_numpy(~self._table.present)] = _NO_VECTOR
        scores[torch.arange(len(distinct)), torch.from_numpy(distinct)] = _NO_VECTOR
        scores[torch.from_numpy(distinct == 0)] = 0.0
        return scores[torch.from_numpy(where)]  # [B, I+1]

    def _unit_rows(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, some at a time, their vectors [n, D] of length 1."""
        for start in range(0, len(self._table.present), _ROWS):
            rows = slice(start, start + _ROWS)
            yield rows, unit_rows(torch.from_numpy(np.asarray(self._table.vectors[rows])))


def _bought(split: SequenceSplit) -> Any:
    """Which user has which item in training events: sparse [U, I+1] int32 of ones."""
    user = np.repeat(np.arange(split.user_count), np.diff(split.offsets))
    trains = split.is_train()
    size = split.item_count + 1
    known = np.unique(user[trains] * size + split.items[trains])
    return sparse.csr_array(
        (np.ones(len(known), np.int32), (known // size, known % size)),
        shape=(split.user_count, size),
    )


def _nearest(bought: Any, k: int, shrinkage: float) -> Any:
    """Each item's k nearest by shrunken cosine: sparse [I+1, I+1] float64, k a row at most."""
    by_item = bought.T.tocsr()  # [I+1, U]
    size = by_item.shape[0]
    users = np.diff(by_item.indptr).astype(np.float64)  # [I+1] of each item
    pairs = by_item @ np.diff(bought.indptr)  # [I+1] counted for each item
    block = np.cumsum(pairs, dtype=np.int64) // _BLOCK_PAIRS
    bounds = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), size]
    columns, values, counts = [], [], [np.zeros(1, np.int64)]
    for start, end in pairwise(bounds):
        common = by_item[start:end] @ bought  # [end - start, I+1]
        item, other = np.repeat(np.arange(start, end), np.diff(common.indptr)), common.indices
        cosine = common.data / (np.sqrt(users[item] * users[other]) + shrinkage)
        cosine[item == other] = -1.0
        kept = cosine > 0
        for row in np.flatnonzero(np.diff(common.indptr) > k):
            part = slice(*common.indptr[row : row + 2])
            kept[part] = False
            kept[part.start + _largest(cosine[part], other[part], k)] = True
        columns.append(other[kept])
        values.append(cosine[kept])
        counts.append(np.bincount(item[kept] - start, minlength=end - start))
    pointer = np.cumsum(np.concatenate(counts))
    return sparse.csr_array(
        (np.concatenate(values), np.concatenate(columns), pointer), shape=(size, size)
    )


def _largest(values: NDArray[np.float64], columns: NDArray[np.int32], k: int) -> NDArray[np.int64]:
    """Where the k largest of more values are; among equal ones those of the lower columns."""
    least = np.partition(values, len(values) - k)[len(values) - k]
    above, equal = np.flatnonzero(values > least), np.flatnonzero(values == least)
    equal = equal[np.argsort(columns[equal])]
    return np.concatenate([above, equal[: k - len(above)]])


def _above(popular: Tensor, found: Any, *, add: bool = False) -> Tensor:
    """Popularity [I+1], with what was found, sparse [B, I+1], in its place or added: [B, I+1]."""
    found = found.tocoo()
    scores = popular.repeat(found.shape[0], 1)
    row, column = (torch.from_numpy(index.astype(np.int64)) for index in found.coords)
    value = torch.from_numpy(found.data).to(scores)
    scores.index_put_((row.to(scores.device), column.to(scores.device)), value, accumulate=add)
    return scores


def _popularity_levels(split: SequenceSplit) -> tuple[NDArray[np.float64], int]:
    """Popularity [I+1] in 0..1, 1 excluded, equal steps from one count to the next; and its L."""
    distinct, level = np.unique(split.train_counts(), return_inverse=True)
    return level / len(distinct), len(distinct)


def _exact(largest: int) -> torch.dtype:
    """The floating type in which this many steps stay apart."""
    return torch.float32 if largest < _EXACT_IN_FLOAT32 else torch.float64
