"""The event log as three arrays, and what is left out of it: duplicates, rare users and items.

From a reader (`mmkd.data.readers`) to the split protocols (`mmkd.data.splits`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from mmkd.errors import DataError, at_least, refuse, shown

Duplicates = Literal["keep", "first", "last"]
_BLOCK = 1 << 22  # events that are compared at once


@dataclass(frozen=True)
class InteractionLog:
    """E events of U users, in the order of their file.

        >>> import numpy as np
        >>> from mmkd import InteractionLog
        >>> log = InteractionLog(
        ...     user=np.array([0, 1, 0]),
        ...     item=np.array([2, 2, 1]),
        ...     timestamp=np.array([10.0, 20.0, 30.0]),
        ...     user_ids=("ada", "bob"),
        ... )
        >>> log.keep(log.item == 2).timestamp
        array([10., 20.])

    Attributes:
        user: [E] whole numbers in 0..U-1; int32 of a log that was read.
        item: [E] whole numbers, rows of the item table in 1..I; int32 likewise.
        timestamp: [E] float64, seconds or any unit that grows with time.
        user_ids: [U] external ids, in order of first appearance.
    """

    user: NDArray[np.integer[Any]]
    item: NDArray[np.integer[Any]]
    timestamp: NDArray[np.float64]
    user_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuses arrays of unequal length and numbers outside their index space."""
        if not len(self.user) == len(self.item) == len(self.timestamp):
            raise DataError(
                f"an interaction log's arrays differ in length: user {len(self.user)}, "
                f"item {len(self.item)}, timestamp {len(self.timestamp)}"
            )
        if len(self) and (self.user.min() < 0 or self.user.max() >= len(self.user_ids)):
            raise DataError(f"user numbers must lie in 0..{len(self.user_ids) - 1}")
        if len(self) and self.item.min() < 1:
            raise DataError("item rows start at 1; row 0 is padding")

    def __len__(self) -> int:
        """Number of events."""
        return len(self.user)

    def by_user(self) -> NDArray[np.integer[Any]] | None:
        """The events user after user, each user's by time, [E]; equal times keep their order.

        None where they are in this order, as those of a sequence file.
        """
        if all(map(self._is_in_order, self._blocks())):
            return None
        number = np.int32 if len(self) < 2**31 else np.int64
        order = None
        times = (self.timestamp[block] for block in self._blocks())
        if any((time[1:] < time[:-1]).any() for time in times):
            order = np.argsort(self.timestamp, kind="stable").astype(number, copy=False)
        user = self.user if order is None else self.user[order]
        # a matrix of users and events, by rows: counted, not compared, and in the order given
        shape = (len(self.user_ids), len(user))
        marks = np.ones(len(user), np.int8), (user, np.arange(len(user), dtype=number))
        grouped: NDArray[np.integer[Any]] = coo_array(marks, shape=shape).tocsr().indices
        if order is None:
            return grouped
        events: NDArray[np.integer[Any]] = order[grouped]
        return events

    def tied(self) -> int:
        """How many events share their timestamp with another of their user's events.

        The order of the file decides between them.
        """
        order = self.by_user()
        same = np.zeros(len(self) + 1, np.bool_)  # whether an event ties with the one before it
        for block in self._blocks():
            events = block if order is None else order[block]
            user, timestamp = self.user[events], self.timestamp[events]
            found = (user[1:] == user[:-1]) & (timestamp[1:] == timestamp[:-1])
            same[block.start + 1 : block.start + 1 + len(found)] = found
        return int(np.count_nonzero(same[1:] | same[:-1]))

    def counts(self) -> NDArray[np.int64]:
        """How many events each user has, [U]."""
        counts = np.zeros(len(self.user_ids), np.int64)
        for start in range(0, len(self), _BLOCK):  # bincount makes each number one of 64 bits
            counts += np.bincount(self.user[start : start + _BLOCK], minlength=len(counts))
        return counts

    def _is_in_order(self, block: slice) -> bool:
        user, timestamp = self.user[block], self.timestamp[block]
        later = (user[1:] == user[:-1]) & (timestamp[1:] >= timestamp[:-1])
        return bool((later | (user[1:] > user[:-1])).all())

    def _blocks(self) -> Iterator[slice]:
        """All events, some at a time, and with them the next one."""
        for start in range(0, len(self), _BLOCK):
            yield slice(start, start + _BLOCK + 1)

    def keep(self, mask: NDArray[np.bool_]) -> "InteractionLog":
        """Keeps some of the events, and the users that still have one.

        Args:
            mask: [E] True for the events to keep.

        Returns:
            A log in the same order, with users numbered anew.
        """
        if mask.all():
            return self
        user = self.user[mask]
        alive = np.bincount(user, minlength=len(self.user_ids)) > 0
        number = (np.cumsum(alive) - 1).astype(self.user.dtype)  # [U] old number to new
        return InteractionLog(
            user=number[user],
            item=self.item[mask],
            timestamp=self.timestamp[mask],
            user_ids=tuple(np.array(self.user_ids, dtype=object)[alive]),
        )


@dataclass(frozen=True)
class LeftOut:
    """What of a log's events was left out, and why.

    Attributes:
        events: Events of the table.
        unknown: Of items that the catalogue lacks.
        unknown_items: Those items' ids, each once.
        rated_low: Rated below ``min_rating``.
        repeated: Of a user with an item that another event is kept of.
        rare: Of users and items below the k-core's bounds.
        users: Users of whom no event is left.
    """

    events: int = 0
    unknown: int = 0
    unknown_items: tuple[str, ...] = ()
    rated_low: int = 0
    repeated: int = 0
    rare: int = 0
    users: int = 0

    def lines(self) -> Iterator[str]:
        """One for each reason that holds, with its count."""
        of = f"of {self.events:,} events"
        if self.unknown:
            count = len(self.unknown_items)
            yield (
                f"{self.unknown:,} {of} dropped: they are of {count:,} item{'s' * (count > 1)} "
                f"that the catalogue lacks ({shown(self.unknown_items, limit=3)})"
            )
        for count, reason in (
            (self.rated_low, "rated below min_rating"),
            (self.repeated, "another event of the same user and item is kept (duplicates)"),
            (self.rare, "fewer events than min_user_events or min_item_events"),
        ):
            if count:
                yield f"{count:,} {of} dropped: {reason}"
        if self.users:
            yield (
                f"{self.users:,} user{'s' * (self.users > 1)} dropped: no event of theirs is left"
            )


def drop_duplicates(log: InteractionLog, *, duplicates: Duplicates) -> InteractionLog:
    """Keeps one event for each pair of user and item.

    Args:
        log: The events.
        duplicates: ``keep`` changes nothing; ``first`` keeps a pair's earliest event, ``last`` its
            latest. Events with equal timestamps are ordered as in the log.

    Returns:
        The log without the other events.

    Raises:
        DataError: If `duplicates` is none of the three.
    """
    refuse(check_drop_duplicates(duplicates=duplicates), DataError)
    if duplicates == "keep" or not len(log):
        return log
    order = np.lexsort((log.timestamp, log.item, log.user))  # stable: equal times keep log order
    user, item = log.user[order], log.item[order]
    differs = (user[1:] != user[:-1]) | (item[1:] != item[:-1])
    edge = np.ones(1, dtype=np.bool_)
    chosen = [edge, differs] if duplicates == "first" else [differs, edge]
    mask = np.zeros(len(log), dtype=np.bool_)
    mask[order[np.concatenate(chosen)]] = True
    return log.keep(mask)


def check_drop_duplicates(**options: Any) -> list[str]:
    """What is wrong with options of `drop_duplicates`, a line each."""
    got = options.get("duplicates", "keep")
    if got in get_args(Duplicates):
        return []
    return [f"duplicates: got {got!r}, wanted 'keep', 'first' or 'last'"]


def k_core(log: InteractionLog, *, min_user_events: int, min_item_events: int) -> InteractionLog:
    """Drops users and items below the minimum of events, again and again, until none is.

    Args:
        log: The events.
        min_user_events: Fewest events of a user that stays.
        min_item_events: Fewest events of an item whose events stay. The item itself stays in the
            catalogue, where it is a cold candidate.

    Returns:
        The largest part of the log in which both bounds hold.

    Raises:
        DataError: If a bound is below 1 or no event is left.
    """
    refuse(
        check_k_core(min_user_events=min_user_events, min_item_events=min_item_events), DataError
    )
    if len(log) and min_user_events == min_item_events == 1:
        return log
    alive = np.arange(len(log))  # [E'] events still in
    while len(alive):
        user, item = log.user[alive], log.item[alive]
        enough = np.bincount(user)[user] >= min_user_events
        enough &= np.bincount(item)[item] >= min_item_events
        if enough.all():
            break
        alive = alive[enough]
    if not len(alive):
        raise DataError(
            f"none of {len(log)} events is left with min_user_events={min_user_events} and "
            f"min_item_events={min_item_events}; use smaller bounds"
        )
    mask = np.zeros(len(log), dtype=np.bool_)
    mask[alive] = True
    return log.keep(mask)


def check_k_core(**options: Any) -> list[str]:
    """What is wrong with options of `k_core`, a line each."""
    bounds = {name: options.get(name) for name in ("min_user_events", "min_item_events")}
    return at_least(1, "use 1 to keep all", **bounds)
