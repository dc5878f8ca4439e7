"""The event log and its filters, against one-event-at-a-time references."""

import numpy as np
import pytest
from references.events import Event, reference_duplicates, reference_k_core

from mmkd import InteractionLog
from mmkd.data import drop_duplicates, k_core
from mmkd.data.interactions import Duplicates
from mmkd.errors import DataError


def random_events(seed: int, events: int = 200, users: int = 30, items: int = 25) -> list[Event]:
    rng = np.random.default_rng(seed)
    return [
        (f"u{int(users * rng.random() ** 2)}", 1 + int(items * rng.random() ** 2), float(time))
        for time in rng.integers(0, 40, events)
    ]


def log_of(events: list[Event]) -> InteractionLog:
    users = list(dict.fromkeys(user for user, _, _ in events))
    return InteractionLog(
        user=np.array([users.index(user) for user, _, _ in events], dtype=np.int64),
        item=np.array([item for _, item, _ in events], dtype=np.int64),
        timestamp=np.array([time for _, _, time in events]),
        user_ids=tuple(users),
    )


def events_of(log: InteractionLog) -> list[Event]:
    columns = (log.user.tolist(), log.item.tolist(), log.timestamp.tolist())
    return [(log.user_ids[user], item, time) for user, item, time in zip(*columns, strict=True)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("users", "items"), [(1, 1), (5, 1), (1, 6), (4, 7), (5, 4)])
def test_k_core_is_the_fixed_point_of_dropping_users_and_items_below_it(
    seed: int, users: int, items: int
) -> None:
    events = random_events(seed)
    expected = reference_k_core(events, users, items)
    assert expected  # the case is worth testing
    core = k_core(log_of(events), min_user_events=users, min_item_events=items)
    assert events_of(core) == expected
    assert set(core.user.tolist()) == set(range(len(core.user_ids)))


def test_k_core_follows_a_chain_of_drops_to_its_end() -> None:
    # Each drop takes the next one below the minimum; a single pass would stop after user a.
    chain: list[Event] = [("a", 1, 0), ("b", 1, 1), ("b", 2, 2), ("c", 2, 3), ("c", 3, 4)]
    square: list[Event] = [(user, item, 9) for user in "xy" for item in (8, 9)]
    core = k_core(log_of(chain + square), min_user_events=2, min_item_events=2)
    assert events_of(core) == square


def test_an_empty_k_core_says_which_bounds_emptied_it() -> None:
    with pytest.raises(DataError, match=r"none of 3 events.*min_user_events=4.*smaller bounds"):
        k_core(
            log_of([("a", 1, 0), ("a", 2, 1), ("b", 1, 2)]), min_user_events=4, min_item_events=1
        )


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(DataError, match="min_item_events: got 0, wanted at least 1; use 1"):
        k_core(log_of([("a", 1, 0)]), min_user_events=1, min_item_events=0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("policy", ["first", "last"])
def test_duplicates_keep_the_earliest_or_latest_event(seed: int, policy: Duplicates) -> None:
    events = random_events(seed, events=300, users=12, items=12)
    expected = reference_duplicates(events, policy)
    assert len(expected) < len(events)
    assert events_of(drop_duplicates(log_of(events), duplicates=policy)) == expected


def test_duplicates_with_equal_times_go_by_the_order_of_the_log() -> None:
    log = InteractionLog(
        user=np.array([0, 0, 0, 0]),
        item=np.array([5, 6, 5, 6]),
        timestamp=np.array([1.0, 2.0, 1.0, 0.0]),
        user_ids=("a",),
    )
    first = drop_duplicates(log, duplicates="first")
    assert list(zip(first.item, first.timestamp, strict=True)) == [(5, 1.0), (6, 0.0)]
    last = drop_duplicates(log, duplicates="last")
    assert list(zip(last.item, last.timestamp, strict=True)) == [(6, 2.0), (5, 1.0)]


def test_duplicates_keep_changes_nothing_and_other_words_are_refused() -> None:
    log = log_of(random_events(0))
    assert drop_duplicates(log, duplicates="keep") is log
    with pytest.raises(DataError, match="got 'newest', wanted 'keep', 'first' or 'last'"):
        drop_duplicates(log, duplicates="newest")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("user", "item", "message"),
    [([0, 1], [1], "differ in length"), ([0, 2], [1, 1], r"0\.\.1"), ([0, 1], [0, 1], "padding")],
)
def test_a_log_refuses_numbers_outside_their_index_space(
    user: list[int], item: list[int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        InteractionLog(
            user=np.array(user),
            item=np.array(item),
            timestamp=np.zeros(len(item)),
            user_ids=("a", "b"),
        )
