"""Lists of users: test cases to a history, the ten recommended, and which source carried each.

The cases are drawn, half of those where the item that was taken stands in the list and half of
the others, so that both can be looked at; how often which happens is the metrics' to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmkd.data.splits import SequenceSplit
from mmkd.evaluation import CaseRanks
from mmkd.report.cards import Card, Cards
from mmkd.student import Ensemble
from mmkd.terminal import printable

USERS = 12
HISTORY = 10  # latest items that are shown


@dataclass(frozen=True)
class Listed:
    """A recommended item.

    Attributes:
        card: Of the item.
        hit: Whether it is what was taken.
        sources: Source to its weight in the item's vector, in 0..1; empty where it is not known.
    """

    card: Card
    hit: bool
    sources: dict[str, float]


@dataclass(frozen=True)
class UserList:
    """A user's case.

    Attributes:
        user: External id.
        history: Oldest first, the latest ones.
        earlier: How many items came before those.
        target: What was taken.
        rank: Of the target.
        listed: The recommended, best first.
    """

    user: str
    history: list[Card]
    earlier: int
    target: Card
    rank: float
    listed: list[Listed]

    @property
    def hit(self) -> bool:
        """Whether what was taken is in the list."""
        return any(one.hit for one in self.listed)


def user_lists(
    ranks: CaseRanks,
    split: SequenceSplit,
    users: tuple[str, ...],
    cards: Cards,
    *,
    sources: Mapping[str, NDArray[np.float32]] | None = None,
    count: int = USERS,
    seed: int = 0,
) -> list[UserList]:
    """Some users of the test, hits first.

    Args:
        ranks: Of the test cases.
        split: Where the histories are.
        users: External ids.
        cards: To show the items.
        sources: Source to its weight in each item's vector [I+1 or more].
        count: How many users.
        seed: Of the draw.
    """
    found = []
    for case in _drawn(ranks, count, seed):
        user, target = int(ranks.user[case]), int(ranks.target[case])
        before = split.sequence(user)[: split.test.position[ranks.case[case]]]
        listed = [
            Listed(
                cards(row),
                row == target,
                {name: float(weights[row]) for name, weights in (sources or {}).items()},
            )
            for row in ranks.top_items[case].tolist()
            if row > 0
        ]
        found.append(
            UserList(
                user=printable(users[user]),
                history=cards.of(before[-HISTORY:]),
                earlier=max(0, len(before) - HISTORY),
                target=cards(target),
                rank=float(ranks.rank[case]),
                listed=listed,
            )
        )
    return found


def source_shares(student: Ensemble) -> dict[str, NDArray[np.float32]] | None:
    """Source to its weight in each item's vector [I+2]; None where there is one, or no weights."""
    found = student.source_weights()
    if found is None or len(found) < 2:
        return None
    return {printable(name): weights.float().numpy() for name, weights in found.items()}


def _drawn(ranks: CaseRanks, count: int, seed: int) -> list[int]:
    """Places of the cases: half with a hit, half without, as far as there are such."""
    hit = (ranks.top_items == ranks.target[:, None]).any(1)
    order = np.random.default_rng(seed).permutation(len(ranks))
    _, first = np.unique(ranks.user[order], return_index=True)  # a user once
    order = order[np.sort(first)]
    hits, misses = order[hit[order]], order[~hit[order]]
    half = max(count // 2, count - len(misses))
    chosen = [*hits[:half], *misses[: count - min(half, len(hits))]]
    return [int(case) for case in chosen]
