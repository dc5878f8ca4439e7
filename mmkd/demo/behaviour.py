"""The facets of a made-up catalogue: what there is to know about an item, and where it shows.

Colour and shape show in the picture only, material and occasion in the text only, pattern in both
(and among the attributes), price among the attributes only. A model that wants all of an item must
therefore read both modalities.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

FACETS: Final[dict[str, tuple[str, ...]]] = {
    "colour": ("red", "orange", "yellow", "green", "teal", "blue", "purple", "grey"),
    "shape": ("circle", "square", "triangle", "star", "cross", "ring"),
    "pattern": ("plain", "striped", "dotted", "checked"),
    "material": ("wood", "steel", "cotton", "leather", "glass", "clay"),
    "occasion": ("office", "party", "travel", "kitchen", "sport", "bedtime"),
    "price": ("budget", "standard", "premium"),
}


def draw_facets(count: int, rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Draws each facet of each item uniformly, facets independent of one another.

    Args:
        count: I, number of items.
        rng: Source of randomness.

    Returns:
        Facet name to [I+1] int64, an index into `FACETS`; row 0 is -1.
    """
    return {
        name: np.concatenate([np.full(1, -1), rng.integers(0, len(values), count)])
        for name, values in FACETS.items()
    }


# half of a mood shows in the picture, half in the text
MOODS: Final = (("colour", "material", "pattern"), ("shape", "occasion", "pattern"))
STAY: Final = 0.85  # probability that a mood lasts another step
MATCH_WEIGHTS: Final = (
    0.0005,
    0.003,
    0.04,
    1.0,
)  # of an item that shares 0 to 3 of a mood's facets
LIKING: Final = 0.3  # how much less often a user takes a pattern, or a price, that is not liked
START_S: Final = 1_672_531_200  # 2023-01-01
SPAN_S: Final = 300 * 86_400  # users begin within it
GAP_S: Final = 2 * 86_400  # mean time between two events of a user
LATE: Final = 0.3  # of the items are launched within `LAUNCHES_S`
LAUNCHES_S: Final = (250 * 86_400, 300 * 86_400)
_ROUNDS: Final = 64


@dataclass(frozen=True)
class Events:
    """E events, by time.

    Attributes:
        user: [E] int64 in 0..U-1.
        item: [E] int64 in 1..I.
        timestamp: [E] int64, seconds since 1970.
    """

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    timestamp: NDArray[np.int64]


def draw_appeal(
    count: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """How popular each item is, and from when.

    Popularity is Zipf-Mandelbrot for the items that were always there, even for those launched
    late; one item in fifty is never taken.

    Args:
        count: I.
        rng: Source of randomness.

    Returns:
        Weights, [I+1] float64, row 0 and the items never taken 0; launches, [I+1] int64 seconds.
    """
    late, never = int(LATE * count), max(1, count // 50)
    tail = (np.arange(1, count - late + 1) + 0.05 * count) ** -0.35
    tail[-never:] = 0
    weights = np.concatenate([tail / tail.mean(), np.ones(late)])
    launches = np.concatenate([np.zeros(len(tail)), rng.integers(*LAUNCHES_S, late)])
    shuffled = rng.permutation(count)
    weights, launches = weights[shuffled], START_S * (launches > 0)[shuffled] + launches[shuffled]
    return np.append(0.0, weights), np.append(0, launches.astype(np.int64))


def match_weights(
    facets: Mapping[str, NDArray[np.int64]], mood: Sequence[str]
) -> NDArray[np.float64]:
    """How a mood weighs every item after given facet values.

    Args:
        facets: Facet name to [I+1] int64.
        mood: Facet names, of A, B, ... values.

    Returns:
        [A * B * ..., I+1] float64; a row for each combination of the last item's values, the last
        facet's counting fastest.
    """
    sizes = [len(FACETS[name]) for name in mood]
    shared = np.zeros((*sizes, len(facets[mood[0]])), dtype=np.int64)
    for axis, name in enumerate(mood):
        same = np.arange(sizes[axis])[:, None] == facets[name]  # [values, I+1]
        shared += np.expand_dims(same, [other for other in range(len(mood)) if other != axis])
    weights: NDArray[np.float64] = np.array(MATCH_WEIGHTS)[shared].reshape(-1, shared.shape[-1])
    return weights


def simulate(
    facets: Mapping[str, NDArray[np.int64]],
    popularity: NDArray[np.float64],
    launched: NDArray[np.int64],
    users: int,
    rng: np.random.Generator,
    *,
    events: tuple[int, int] = (5, 25),
) -> Events:
    """Lets every user take some items, all users one step at a time.

    Args:
        facets: Facet name to [I+1] int64.
        popularity: [I+1] weights.
        launched: [I+1] int64, seconds.
        users: U.
        rng: Source of randomness.
        events: The fewest and the most items that a user takes.

    Returns:
        The events of all users, by time.
    """
    always = (popularity > 0) & (launched == 0)
    lengths = np.minimum(rng.integers(events[0], events[1] + 1, users), always.sum())
    contexts, cumulative = _contexts(facets, popularity)
    crowd = _Crowd(
        liking=_likings(facets, users, rng),
        taken=np.tile(popularity == 0, (users, 1)),
        launched=launched,
        now=START_S + rng.integers(0, SPAN_S, users),
    )
    mood = rng.integers(0, len(MOODS), users)
    last = np.zeros(users, dtype=np.int64)
    steps = []
    for step in range(int(lengths.max())):
        active = np.flatnonzero(lengths > step)
        switch = rng.random(users) >= STAY
        mood = np.where(switch, (mood + 1) % len(MOODS), mood)
        crowd.now += 1 + rng.exponential(GAP_S, users).astype(np.int64)
        context = contexts[mood[active], last[active]]
        last[active] = _choose(crowd, active, context, cumulative, rng)
        crowd.taken[active, last[active]] = True
        steps.append((active, last[active], crowd.now[active]))
    user, item, timestamp = (np.concatenate(column) for column in zip(*steps, strict=True))
    order = np.lexsort((user, timestamp))
    return Events(user=user[order], item=item[order], timestamp=timestamp[order])


@dataclass
class _Crowd:
    """All users: what each likes and has taken [U, I+1], and the moment each is at [U]."""

    liking: NDArray[np.float64]
    taken: NDArray[np.bool_]
    launched: NDArray[np.int64]
    now: NDArray[np.int64]

    def may_take(self, user: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.bool_]:
        may: NDArray[np.bool_] = ~self.taken[user, item] & (self.launched[item] <= self.now[user])
        return may


def _contexts(
    facets: Mapping[str, NDArray[np.int64]], popularity: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Which distribution follows (mood, last item), [M, I+1], and all of them, flat [C * (I+1)].

    Distribution c is cumulative and lies in (c, c + 1], so one sorted search draws from any mix of
    them. Distribution 0, plain popularity, follows row 0, the start.
    """
    weights = [np.ones((1, len(popularity)))]
    contexts, start = [], 1
    for mood in MOODS:
        sizes = [len(FACETS[name]) for name in mood]
        context = start + np.ravel_multi_index([facets[name] for name in mood], sizes, mode="clip")
        context[0] = 0
        contexts.append(context)
        weights.append(match_weights(facets, mood))
        start += len(weights[-1])
    cumulative = np.cumsum(np.concatenate(weights) * popularity, axis=1)  # [C, I+1]
    cumulative /= cumulative[:, -1:]
    return np.stack(contexts), (cumulative + np.arange(start)[:, None]).ravel()


def _likings(
    facets: Mapping[str, NDArray[np.int64]], users: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Probability that a user takes an item when it comes up, [U, I+1]."""
    liking = np.ones((users, len(facets["pattern"])))
    for name in ("pattern", "price"):
        likes = np.where(rng.random((users, len(FACETS[name]))) < 0.5, 1.0, LIKING)  # [U, values]
        liking *= likes[:, facets[name]]
    return liking


def _choose(
    crowd: _Crowd,
    active: NDArray[np.int64],
    context: NDArray[np.int64],
    cumulative: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """One new item for each active user, [n], from the user's context [n], by rejection."""
    width = crowd.taken.shape[1]
    chosen = np.zeros(len(active), dtype=np.int64)
    waiting = np.arange(len(active))
    for _ in range(_ROUNDS):
        draw = context[waiting] + 1.0 - rng.random(len(waiting))  # in (c, c + 1]
        item = np.minimum(np.searchsorted(cumulative, draw) - context[waiting] * width, width - 1)
        user = active[waiting]
        accepted = crowd.may_take(user, item) & (rng.random(len(user)) < crowd.liking[user, item])
        chosen[waiting[accepted]] = item[accepted]
        waiting = waiting[~accepted]
        if not len(waiting):
            return chosen
    every = np.arange(width)
    for place in waiting:  # a nearly exhausted context: any item there is
        chosen[place] = rng.choice(every[crowd.may_take(np.full(width, active[place]), every)])
    return chosen
