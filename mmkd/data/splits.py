"""Splits: an event log to users' sequences, and which of their events train, validate and test.

From an `InteractionLog` by one of the protocols of `SPLITS`, or by a function of one's own with the
same first two arguments, to the batches and the evaluator.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mmkd.data.interactions import InteractionLog
from mmkd.data.timestamps import seconds
from mmkd.errors import DataError, at_least, one_of, positive, refuse, whole, within

NewItems = Literal["keep", "drop"]
_BLOCK = 1 << 22  # events that are counted at once


@dataclass(frozen=True)
class Cases:
    """N evaluation cases: predict a user's event from all of that user's events before it.

    Attributes:
        user: [N] int64 in 0..U-1.
        position: [N] int64, index into the user's own sequence, at least 1.
    """

    user: NDArray[np.int64]
    position: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.user)

    def take(self, rows: NDArray[np.bool_]) -> "Cases":
        """Some of them, by a mask [N]."""
        return Cases(self.user[rows], self.position[rows])


@dataclass(frozen=True)
class SequenceSplit:
    """E events of U users, user after user, each user's in time order.

    An event that a protocol leaves out of training and of every history is not among them.

        >>> import numpy as np
        >>> from mmkd import InteractionLog
        >>> from mmkd.data import leave_one_out
        >>> log = InteractionLog(
        ...     user=np.zeros(4, int),
        ...     item=np.array([3, 1, 2, 4]),
        ...     timestamp=np.array([2.0, 1.0, 3.0, 4.0]),
        ...     user_ids=("ada",),
        ... )
        >>> split = leave_one_out(log, item_count=4)
        >>> split.sequence(0), split.target_items(split.test)
        (array([1, 3, 2, 4]), array([4]))

    Attributes:
        items: [E] rows in 1..I, whole numbers such as the log's.
        offsets: [U+1] int64; user u's events are ``items[offsets[u]:offsets[u + 1]]``.
        train_end: [U] int64; the first ``train_end[u]`` events of user u train.
        valid: Cases for model selection.
        test: Cases to be read once, at the end.
        item_count: I.
    """

    items: NDArray[np.integer[Any]]
    offsets: NDArray[np.int64]
    train_end: NDArray[np.int64]
    valid: Cases
    test: Cases
    item_count: int

    @property
    def user_count(self) -> int:
        """U."""
        return len(self.offsets) - 1

    def sequence(self, user: int) -> NDArray[np.int64]:
        """All events of one user, [n] int64, oldest first."""
        own = self.items[self.offsets[user] : self.offsets[user + 1]]
        return own.astype(np.int64)

    def target_items(self, cases: Cases) -> NDArray[np.int64]:
        """The item each case asks for, [N] int64."""
        targets: NDArray[np.int64] = self.items[self.offsets[cases.user] + cases.position].astype(
            np.int64
        )
        return targets

    def is_train(self) -> NDArray[np.bool_]:
        """Which events train, [E] bool."""
        held_out = np.diff(self.offsets) - self.train_end  # [U]
        runs = np.stack([self.train_end, held_out], axis=1).ravel()
        return np.repeat(np.tile([True, False], self.user_count), runs)

    def train_counts(self) -> NDArray[np.int64]:
        """How often each item occurs in training events, [I+1] int64, row 0 zero."""
        trains = self.is_train()
        counts = np.zeros(self.item_count + 1, np.int64)
        for start in range(0, len(trains), _BLOCK):  # bincount makes each number one of 64 bits
            block = slice(start, start + _BLOCK)
            counts += np.bincount(self.items[block][trains[block]], minlength=len(counts))
        return counts

    def is_cold(self, cases: Cases) -> NDArray[np.bool_]:
        """Which cases ask for an item that never trains, [N] bool."""
        cold: NDArray[np.bool_] = self.train_counts()[self.target_items(cases)] == 0
        return cold


def leave_one_out(
    log: InteractionLog, item_count: int, *, min_train_events: int = 1
) -> SequenceSplit:
    """Tests on each user's last event and validates on the one before it.

    Args:
        log: The events.
        item_count: I, size of the catalogue.
        min_train_events: A user with fewer events than this before the validation event has no
            case; all of that user's events train.

    Returns:
        The split; each user has one validation and one test case, or neither.

    Raises:
        DataError: If `min_train_events` is below 1, or no user has enough events for a case.
    """
    refuse(check_leave_one_out(min_train_events=min_train_events), DataError)
    items, offsets = _ordered(log, item_count)[:2]
    lengths = np.diff(offsets)
    user = np.flatnonzero(lengths - 2 >= min_train_events)
    if not len(user):
        raise DataError(
            f"leave_one_out: no user has the {min_train_events + 2} events a case needs (the "
            f"longest history has {lengths.max(initial=0)}); check the user column, or use "
            "split: temporal"
        )
    train_end = lengths.copy()
    train_end[user] -= 2
    return SequenceSplit(
        items=items,
        offsets=offsets,
        train_end=train_end,
        valid=Cases(user, lengths[user] - 2),
        test=Cases(user.copy(), lengths[user] - 1),
        item_count=item_count,
    )


def check_leave_one_out(**options: Any) -> list[str]:
    """What is wrong with options of `leave_one_out`, a line each."""
    hint = "a case needs an event before it"
    return at_least(1, hint, min_train_events=options.get("min_train_events"))


def cold_items(
    log: InteractionLog,
    item_count: int,
    *,
    share: float = 0.1,
    seed: int = 0,
    min_train_events: int = 1,
) -> SequenceSplit:
    """As `leave_one_out`, with a share of the items in no training event: new ones, as it were.

    Cold is an item that was drawn, or that trains nothing anyway, as each of its events would be a
    case. Half of the cold items are asked for in validation only, the other half in the test only,
    so that what is chosen on some new items is judged on others. Nobody has taken a new item yet:
    it is in no history either, and a case on it is predicted from the user's warm events. A test
    history ends with the user's validation event as always, also where that is on a cold item.

    Args:
        log: The events.
        item_count: I, size of the catalogue.
        share: Of the items that have events; so many are drawn.
        seed: Draws them, and halves the cold ones.
        min_train_events: A user with fewer warm events than this before the validation event has
            no case; all of that user's warm events train.

    Returns:
        The split. Events on cold items that are no case are not in it, except those of a user
        without any other: they neither train nor are they in a case.

    Raises:
        DataError: If an option is out of range, or a part has no case on a cold item.
    """
    refuse(check_cold_items(share=share, seed=seed, min_train_events=min_train_events), DataError)
    items, offsets = _ordered(log, item_count)[:2]
    lengths = np.diff(offsets)
    user = np.repeat(np.arange(len(lengths)), lengths)  # [E]
    back = np.repeat(offsets[1:], lengths) - np.arange(len(items))  # 1 is a user's last event
    order = 1 + np.random.default_rng(seed).permutation(item_count)
    order = order[np.isin(order, items)]
    drawn = np.isin(items, order[: round(share * len(order))])  # [E]

    warm = np.bincount(user[(back > 2) & ~drawn], minlength=len(lengths))  # [U]
    case = (warm >= min_train_events)[user] & (back <= 2)  # [E]
    trains = ~case & ~drawn
    trained = np.bincount(items[trains], minlength=item_count + 1)
    cold = order[trained[order] == 0]  # those drawn come first
    valid = case & (back == 2) & ~np.isin(items, cold[1::2])
    test = case & (back == 1) & ~np.isin(items, cold[::2])

    train_end = np.bincount(user[trains], minlength=len(lengths))  # [U]
    kept = trains | valid | test | (train_end == 0)[user]  # a history is never empty
    validated = np.bincount(user[valid], minlength=len(lengths))  # [U] 0 or 1
    ends = np.cumsum(np.bincount(user[kept], minlength=len(lengths)))
    split = SequenceSplit(
        items=items[kept],
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), ends]),
        train_end=train_end,
        valid=Cases(user[valid], train_end[user[valid]]),
        test=Cases(user[test], (train_end + validated)[user[test]]),
        item_count=item_count,
    )
    for part, cases in (("test", split.test), ("validation", split.valid)):
        if not split.is_cold(cases).any():
            raise DataError(
                f"cold_items: there is no {part} case on a cold item ({len(cold)} items are cold, "
                f"half of them serve it); raise share={share}, or split: leave_one_out"
            )
    return split


def check_cold_items(**options: Any) -> list[str]:
    """What is wrong with options of `cold_items`, a line each."""
    return [
        *within(1e-4, 0.9, "such as 0.1", share=options.get("share")),
        *whole(0, "such as 0", seed=options.get("seed")),
        *check_leave_one_out(min_train_events=options.get("min_train_events")),
    ]


def ratio(
    log: InteractionLog, item_count: int, *, valid: float = 0.1, test: float = 0.1
) -> SequenceSplit:
    """Cuts each user's history by time: oldest part trains, then validation, newest tests.

    Args:
        log: The events.
        item_count: I, size of the catalogue.
        valid: Fraction of a user's n events to validate on; floor(valid * n) events.
        test: Fraction to test on; floor(test * n) events, the newest.

    Returns:
        The split; every event of the two newer parts is a case.

    Raises:
        DataError: If the fractions leave nothing to train on, or yield no validation or test case.
    """
    refuse(check_ratio(valid=valid, test=test), DataError)
    items, offsets = _ordered(log, item_count)[:2]
    lengths = np.diff(offsets)
    tested = np.floor(lengths * test + 1e-9).astype(np.int64)  # 1e-9: 0.1 * 30 is 3, not 2.99...
    validated = np.floor(lengths * valid + 1e-9).astype(np.int64)
    train_end = lengths - validated - tested
    split = SequenceSplit(
        items=items,
        offsets=offsets,
        train_end=train_end,
        valid=_cases(train_end, lengths - tested),
        test=_cases(lengths - tested, lengths),
        item_count=item_count,
    )
    return _checked(split, "ratio", "use larger fractions, or split: leave_one_out")


def check_ratio(**options: Any) -> list[str]:
    """What is wrong with options of `ratio`, a line each."""
    shares = {name: options.get(name) for name in ("valid", "test")}
    # the report reads the test cases, model selection the others
    return positive("such as 0.1", **shares) + _too_much(**shares)


def temporal(
    log: InteractionLog,
    item_count: int,
    *,
    valid: float = 0.1,
    test: float = 0.1,
    valid_from: float | str | None = None,
    test_from: float | str | None = None,
    new_items: NewItems = "keep",
) -> SequenceSplit:
    """Cuts all histories at the same two timestamps; nothing from after the first one trains.

    A user whose events all lie after the first cut has ``train_end`` 0. A user's very first event
    is never a case, as there is no history to predict it from.

    Args:
        log: The events.
        item_count: I, size of the catalogue.
        valid: Fraction of all events to validate on, where `valid_from` is not given.
        test: Fraction of all events to test on, where `test_from` is not given.
        valid_from: First timestamp that validates: a number in the log's unit, or an ISO date.
        test_from: First timestamp that tests.
        new_items: ``keep`` has cases on items without an event before the first cut, as there are
            in March; ``drop`` has none, and leaves them in the histories of other cases.

    Returns:
        The split. Events of one timestamp are never parted, so the fractions are approximate.

    Raises:
        DataError: If an option or the cuts are out of order, or a part is left empty.
    """
    problems = check_temporal(
        valid=valid,
        test=test,
        valid_from=valid_from,
        test_from=test_from,
        new_items=new_items,
    )
    refuse(problems, DataError)
    items, offsets, order = _ordered(log, item_count)
    timestamp = log.timestamp if order is None else log.timestamp[order]
    if not len(timestamp):
        raise DataError("temporal: the interaction log is empty")
    start = _cut(timestamp, valid_from, 1 - valid - test)
    middle = _cut(timestamp, test_from, 1 - test)
    if not start <= middle:
        raise DataError(f"temporal: valid_from={start} lies after test_from={middle}; swap them")
    train_end = _count_before(timestamp, offsets, start)
    test_start = _count_before(timestamp, offsets, middle)
    if not train_end.any():
        raise DataError(
            f"temporal: no event lies before valid_from={start}, so nothing trains (the log runs "
            f"from {timestamp.min()} to {timestamp.max()}); use an earlier date or smaller "
            "fractions"
        )
    split = SequenceSplit(
        items=items,
        offsets=offsets,
        train_end=train_end,
        valid=_cases(np.maximum(train_end, 1), test_start),
        test=_cases(np.maximum(test_start, 1), np.diff(offsets)),
        item_count=item_count,
    )
    if new_items == "drop":
        split = replace(
            split,
            valid=split.valid.take(~split.is_cold(split.valid)),
            test=split.test.take(~split.is_cold(split.test)),
        )
    span = f"the log runs from {timestamp.min()} to {timestamp.max()}, cut at {start} and {middle}"
    return _checked(split, "temporal", f"{span}; move the cuts, or split: leave_one_out")


def check_temporal(**options: Any) -> list[str]:
    """What is wrong with options of `temporal`, a line each."""
    shares = {name: options.get(name) for name in ("valid", "test")}
    problems = at_least(0, "such as 0.1", **shares) + _too_much(**shares)
    problems += one_of(get_args(NewItems), new_items=options.get("new_items"))
    cuts = []
    for name in ("valid_from", "test_from"):
        if (given := options.get(name)) is None:
            continue
        try:
            cuts.append(seconds(given))
        except ValueError:
            problems.append(
                f"{name}: got {given!r}, wanted a number or an ISO date such as '2024-03-01' or "
                "'2024-03-01T12:00:00'"
            )
    if len(cuts) == 2 and cuts[0] > cuts[1]:
        problems.append(
            f"valid_from: got {options['valid_from']}, wanted no later than test_from="
            f"{options['test_from']}; swap them"
        )
    return problems


SPLITS: Final[dict[str, Callable[..., SequenceSplit]]] = {
    "leave_one_out": leave_one_out,
    "cold_items": cold_items,
    "ratio": ratio,
    "temporal": temporal,
}


def _ordered(
    log: InteractionLog, item_count: int
) -> tuple[NDArray[np.integer[Any]], NDArray[np.int64], NDArray[np.integer[Any]] | None]:
    """Events user by user in time order: items [E], offsets [U+1]; and `by_user` of the log."""
    if len(log) and log.item.max() > item_count:
        raise DataError(
            f"the log has item row {log.item.max()}, the catalogue only {item_count} items; "
            "load the log with this catalogue"
        )
    order = log.by_user()
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(log.counts())])
    return log.item if order is None else log.item[order], offsets, order


def _cases(first: NDArray[np.int64], end: NDArray[np.int64]) -> Cases:
    """One case for each position in first[u]..end[u]-1 of each user u."""
    lengths = np.maximum(end - first, 0)  # [U]
    user = np.repeat(np.arange(len(first)), lengths)
    within = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return Cases(user, np.repeat(first, lengths) + within)


def _count_before(
    timestamp: NDArray[np.float64], offsets: NDArray[np.int64], cut: float
) -> NDArray[np.int64]:
    """How many events of each user lie strictly before a cut, [U]."""
    running = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(timestamp < cut)])
    counts: NDArray[np.int64] = np.diff(running[offsets])
    return counts


def _cut(timestamp: NDArray[np.float64], given: float | str | None, quantile: float) -> float:
    if given is None:
        return float(np.quantile(timestamp, quantile, method="higher"))
    return seconds(given)


def _too_much(valid: float | None, test: float | None) -> list[str]:
    if valid is None or test is None or valid + test < 1:
        return []
    return [f"valid: got {valid} with test={test}, wanted a sum below 1; the rest trains"]


def _checked(split: SequenceSplit, name: str, remedy: str) -> SequenceSplit:
    for part, cases in (("test", split.test), ("validation", split.valid)):
        if not len(cases):  # the report reads the one, model selection the other
            raise DataError(f"{name}: there is no {part} case; {remedy}")
    return split
