"""Neighbours: some items to those nearest by each encoder, by the student, and by who took them.

What training moved is what a person wants to see: each neighbour knows its place in the other
column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmkd.data.items import ItemTable
from mmkd.data.splits import SequenceSplit
from mmkd.errors import RunError
from mmkd.evaluation import ItemKNN
from mmkd.evaluation.metrics import SLICES, slice_of_items
from mmkd.report.cards import Card, Cards
from mmkd.runs.recommend import similar

SHOWN = 6
SOUGHT = 100  # places in which a neighbour of another column is sought
_WANTED = ("head", "mid", "head", "tail", "mid", "cold")  # of the items asked about


@dataclass(frozen=True)
class Neighbour:
    """An item beside the one that is asked about.

    Attributes:
        card: Of the item.
        elsewhere: For an encoder's neighbour its place among the student's; for one of the
            student's the best among the encoders'. None beyond the first hundred.
        moved: Whether it is not among those shown there.
        together: Whether it is shown among those taken together.
    """

    card: Card
    elsewhere: int | None
    moved: bool
    together: bool


@dataclass(frozen=True)
class Neighbourhood:
    """An item and its columns of neighbours.

    Attributes:
        card: Of the item.
        slice: Its slice: cold, tail, mid or head.
        columns: Name to neighbours: an encoder's modality, ``student`` or ``together``; none where
            the item has no such vector, or was taken by nobody with anything else.
    """

    card: Card
    slice: str
    columns: dict[str, list[Neighbour]]

    @property
    def kept(self) -> int:
        """How many of the student's neighbours an encoder shows too."""
        return sum(not one.moved for one in self.columns["student"])


def neighbourhoods(
    items: ItemTable,
    split: SequenceSplit,
    cards: Cards,
    *,
    student: Tensor,
    encoders: Mapping[str, NDArray[np.float32]],
    seed: int = 0,
) -> list[Neighbourhood]:
    """Six items, drawn from all parts of the catalogue, with their neighbours.

    Args:
        items: The catalogue.
        split: Who took what in training.
        cards: To show them.
        student: [I+1, d] the student's vectors.
        encoders: Modality to an encoder's vectors [I+1, D], zeros where an item has none.
        seed: Of the draw.

    Raises:
        RunError: No item has vectors.
    """
    asked, slices = _asked(split, student, encoders, seed)
    ranked = {name: _nearest(vectors, items, asked) for name, vectors in encoders.items()}
    by_student = _nearest(student, items, asked)
    taken = ItemKNN(split)
    found = []
    for place, row in enumerate(asked.tolist()):
        by_encoder = {name: lists[place] for name, lists in ranked.items()}
        together = _together(taken, row)
        mine = by_student[place]
        columns = {
            name: column(rows, mine, cards=cards, together=together)
            for name, rows in by_encoder.items()
        }
        columns["student"] = column(mine, *by_encoder.values(), cards=cards, together=together)
        columns["together"] = [Neighbour(cards(one), None, False, True) for one in together]
        found.append(Neighbourhood(cards(row), SLICES[slices[row]], columns))
    return found


def _asked(
    split: SequenceSplit,
    student: Tensor,
    encoders: Mapping[str, NDArray[np.float32]],
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the items to ask about; and the slice of every item [I+1]."""
    slices = slice_of_items(split.train_counts())
    known = (student != 0).any(1).numpy()
    for vectors in encoders.values():  # where there are such, of items with all kinds of content
        has = known & vectors.any(1)
        known = has if has.any() else known
    known[0] = False
    generator = np.random.default_rng(seed)
    order = generator.permutation(np.flatnonzero(known))
    chosen: list[int] = []
    for name in _WANTED:
        here = [row for row in order[slices[order] == SLICES.index(name)] if row not in chosen]
        left = here or [row for row in order if row not in chosen]
        chosen += left[:1]
    if not chosen:
        raise RunError("no item has a vector")
    return np.array(chosen, dtype=np.int64), slices


def _nearest(
    vectors: Tensor | NDArray[np.float32], items: ItemTable, asked: NDArray[np.int64]
) -> list[list[int]]:
    """The nearest rows of each item, best first; none of an item that has no vector."""
    table = torch.as_tensor(vectors)
    has = (table[torch.from_numpy(asked)] != 0).any(1).numpy()
    lists: list[list[int]] = [[] for _ in asked]
    if has.any():
        places = np.flatnonzero(has)
        frame = similar(table, items, asked[has], k=min(SOUGHT, len(items)))
        for place, row in zip(places.tolist(), asked[has].tolist(), strict=True):
            own = frame.filter(frame["query"] == items.ids[row])
            lists[place] = items.rows(own["item_id"]).tolist()
    return lists


def _together(taken: ItemKNN, row: int) -> list[int]:
    """The items taken by the same users, nearest first."""
    scores = taken(torch.tensor([[row]]))[0]
    scores[row] = -1.0
    best = torch.topk(scores, min(SHOWN, len(scores) - 1))
    return [int(r) for r, score in zip(best.indices, best.values, strict=True) if score > 0]


def column(
    rows: Sequence[int], *others: Sequence[int], cards: Cards, together: Sequence[int] = ()
) -> list[Neighbour]:
    """The first neighbours of a column.

    Args:
        rows: Nearest first, as far as they are known.
        *others: The same of the columns that this one is looked up in.
        cards: To show them.
        together: Rows that are taken together with the item.
    """
    found = []
    for row in rows[:SHOWN]:
        places = [other.index(row) + 1 for other in others if row in other]
        place = min(places, default=None)
        moved = bool(others) and (place is None or place > SHOWN)
        found.append(Neighbour(cards(row), place, moved, row in together))
    return found
