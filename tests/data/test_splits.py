"""Split protocols, against one-user-at-a-time references."""

from collections import Counter

import numpy as np
import pytest
import torch
from references.events import (
    Event,
    reference_cold_items,
    reference_sequences,
    reference_temporal,
)

from mmkd import Dataset, InteractionLog, ItemTable, SequenceSplit
from mmkd.data import SPLITS, Cases, cold_items, leave_one_out, ratio, temporal
from mmkd.data.batches import TrainingWindows
from mmkd.data.splits import (
    check_cold_items,
    check_leave_one_out,
    check_ratio,
    check_temporal,
)
from mmkd.errors import DataError

ITEMS = 40


def random_log(seed: int) -> tuple[list[Event], InteractionLog]:
    """Interleaved users of 1 to 25 events with many equal timestamps."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(20), rng.integers(1, 26, 20))
    rng.shuffle(users)
    number = {user: n for n, user in enumerate(dict.fromkeys(users.tolist()))}
    events = [
        (f"u{number[user]}", int(rng.integers(1, ITEMS + 1)), float(rng.integers(0, 30)))
        for user in users.tolist()
    ]
    log = InteractionLog(
        user=np.array([int(user[1:]) for user, _, _ in events]),
        item=np.array([item for _, item, _ in events]),
        timestamp=np.array([time for _, _, time in events]),
        user_ids=tuple(f"u{n}" for n in range(len(number))),
    )
    return events, log


def digests_of(log: InteractionLog, split: SequenceSplit) -> dict[str, str]:
    ids, none = ["", *map(str, range(ITEMS))], [None] * (ITEMS + 1)
    return Dataset(ItemTable(ids, ids, none, none, [()] * len(ids)), log, split).digests()


def pairs(cases: Cases) -> set[tuple[str, int]]:
    found = [
        (f"u{u}", p) for u, p in zip(cases.user.tolist(), cases.position.tolist(), strict=True)
    ]
    assert len(set(found)) == len(found)
    return set(found)


WHOLE = [name for name in SPLITS if name != "cold_items"]


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("seed", range(3))
def test_every_split_holds_each_users_events_in_stable_time_order(name: str, seed: int) -> None:
    events, log = random_log(seed)
    split = SPLITS[name](log, ITEMS)
    assert split.user_count == len(log.user_ids)
    for user, own in reference_sequences(events).items():
        assert split.sequence(int(user[1:])).tolist() == [item for item, _ in own]


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in WHOLE), ("cold_items", {"share": 0.4})]
)
def test_no_case_trains_and_validation_precedes_test(name: str, options: dict[str, float]) -> None:
    _, log = random_log(7)
    split = SPLITS[name](log, ITEMS, **options)
    for cases in (split.valid, split.test):
        assert (cases.position >= split.train_end[cases.user]).all()
        assert (cases.position < np.diff(split.offsets)[cases.user]).all()
        assert (cases.position >= 1).all()
    assert not pairs(split.valid) & pairs(split.test)
    last_valid = {u: p for u, p in sorted(pairs(split.valid))}
    assert all(p > last_valid.get(u, -1) for u, p in pairs(split.test))


@pytest.mark.parametrize("minimum", [1, 4])
def test_leave_one_out_takes_the_last_two_events_of_users_with_enough(minimum: int) -> None:
    events, log = random_log(1)
    split = leave_one_out(log, ITEMS, min_train_events=minimum)
    lengths = Counter(user for user, _, _ in events)
    assert min(lengths.values()) < 3  # the case is worth testing
    enough = {user for user, n in lengths.items() if n - 2 >= minimum}
    assert pairs(split.test) == {(user, lengths[user] - 1) for user in enough}
    assert pairs(split.valid) == {(user, lengths[user] - 2) for user in enough}
    for user, n in lengths.items():
        assert split.train_end[int(user[1:])] == (n - 2 if user in enough else n)


def test_ratio_takes_the_floor_of_each_fraction() -> None:
    events, log = random_log(2)
    split = ratio(log, ITEMS, valid=0.1, test=0.3)
    valid, test = set(), set()
    for user, n in Counter(user for user, _, _ in events).items():
        tested, validated = (3 * n) // 10, n // 10
        valid |= {(user, p) for p in range(n - tested - validated, n - tested)}
        test |= {(user, p) for p in range(n - tested, n)}
        assert split.train_end[int(user[1:])] == n - tested - validated
    assert valid and pairs(split.valid) == valid
    assert pairs(split.test) == test


def test_ratio_is_not_fooled_by_binary_fractions() -> None:
    log = InteractionLog(
        user=np.zeros(100, dtype=np.int64),
        item=np.ones(100, dtype=np.int64),
        timestamp=np.arange(100.0),
        user_ids=("a",),
    )
    split = ratio(log, 1, valid=0.57, test=0.29)  # 100 * 0.29 is 28.999999999999996
    assert (split.train_end.tolist(), len(split.valid), len(split.test)) == ([14], 57, 29)


@pytest.mark.parametrize("seed", range(5))
def test_temporal_cuts_every_history_at_the_same_times(seed: int) -> None:
    events, log = random_log(seed)
    split = temporal(log, ITEMS, valid_from=14, test_from="20")
    train, valid, test = reference_temporal(reference_sequences(events), 14, 20)
    assert {f"u{u}": n for u, n in enumerate(split.train_end.tolist())} == train
    assert pairs(split.valid) == valid
    assert pairs(split.test) == test


def test_temporal_leaves_a_user_from_after_the_cut_without_training_events() -> None:
    log = InteractionLog(
        user=np.array([0, 0, 1, 1]),
        item=np.array([1, 2, 3, 4]),
        timestamp=np.array([0.0, 6.0, 7.0, 8.0]),
        user_ids=("old", "new"),
    )
    split = temporal(log, 4, valid_from=5, test_from=7)
    assert split.train_end.tolist() == [1, 0]
    assert pairs(split.valid) == {("u0", 1)}
    assert pairs(split.test) == {("u1", 1)}  # position 0 has no history to predict it from


def test_temporal_fractions_are_of_all_events() -> None:
    user = np.tile(np.arange(10), 100)
    log = InteractionLog(
        user=user,
        item=np.ones(1000, dtype=np.int64),
        timestamp=np.arange(1000.0),
        user_ids=tuple(map(str, range(10))),
    )
    split = temporal(log, 1, valid=0.1, test=0.2)
    assert (split.train_end.sum(), len(split.valid), len(split.test)) == (700, 100, 200)


def test_temporal_reads_iso_dates_as_utc() -> None:
    days = np.arange(10) * 86400.0
    log = InteractionLog(
        user=np.zeros(10, dtype=np.int64),
        item=np.ones(10, dtype=np.int64),
        timestamp=days.astype(np.float64),
        user_ids=("a",),
    )
    split = temporal(log, 1, valid_from="1970-01-06", test_from="1970-01-08T02:00:00+02:00")
    assert split.train_end.tolist() == [5]
    assert split.valid.position.tolist() == [5, 6]
    assert split.test.position.tolist() == [7, 8, 9]


def test_train_counts_count_training_events_only() -> None:
    events, log = random_log(3)
    split = leave_one_out(log, ITEMS)
    counts = [0] * (ITEMS + 1)
    for user, own in reference_sequences(events).items():
        for item, _ in own[: split.train_end[int(user[1:])]]:
            counts[item] += 1
    assert split.train_counts().tolist() == counts
    assert split.is_train().sum() == sum(counts)


def test_target_items_are_the_items_at_the_cases() -> None:
    split = SequenceSplit(
        items=np.array([5, 6, 7, 8, 9]),
        offsets=np.array([0, 2, 5]),
        train_end=np.array([2, 1]),
        valid=Cases(np.array([1]), np.array([1])),
        test=Cases(np.array([1, 0]), np.array([2, 0])),
        item_count=9,
    )
    assert split.target_items(split.valid).tolist() == [8]
    assert split.target_items(split.test).tolist() == [9, 5]


def two_users() -> InteractionLog:
    return InteractionLog(
        user=np.array([0, 0, 1]),
        item=np.array([1, 2, 1]),
        timestamp=np.array([1.0, 2.0, 3.0]),
        user_ids=("a", "b"),
    )


def test_leave_one_out_without_any_case_says_what_a_case_needs() -> None:
    with pytest.raises(DataError, match=r"no user has the 3 events.*longest history has 2"):
        leave_one_out(two_users(), 2)
    with pytest.raises(DataError, match="min_train_events: got 0, wanted at least 1"):
        leave_one_out(two_users(), 2, min_train_events=0)


def test_ratio_refuses_fractions_that_leave_nothing_to_train_or_test() -> None:
    with pytest.raises(DataError, match="no test case; use larger fractions"):
        ratio(two_users(), 2)
    with pytest.raises(DataError, match=r"valid: got 0.5 with test=0.5, wanted a sum below 1"):
        ratio(two_users(), 2, valid=0.5, test=0.5)


def test_options_are_judged_without_a_log() -> None:
    assert check_leave_one_out() == check_ratio(valid=0.4) == check_temporal() == []
    assert check_leave_one_out(min_train_events=0) == [
        "min_train_events: got 0, wanted at least 1; a case needs an event before it"
    ]
    assert check_ratio(valid=0.7, test=0.3) == [
        "valid: got 0.7 with test=0.3, wanted a sum below 1; the rest trains"
    ]
    assert check_temporal(valid=-0.1, valid_from="2024-03-02", test_from="2024-03-01") == [
        "valid: got -0.1, wanted at least 0; such as 0.1",
        "valid_from: got 2024-03-02, wanted no later than test_from=2024-03-01; swap them",
    ]


def test_a_split_without_validation_cases_is_refused() -> None:
    with pytest.raises(DataError, match=r"valid: got 0.0, wanted a number above 0; such as 0.1"):
        ratio(two_users(), 2, valid=0.0, test=0.5)
    with pytest.raises(DataError, match=r"temporal: there is no validation case.*move the cuts"):
        temporal(two_users(), 2, valid_from=2, test_from=2)


@pytest.mark.parametrize(
    ("start", "middle", "message"),
    [
        (5, 4, "valid_from: got 5, wanted no later than test_from=4; swap them"),
        (0, 4, "nothing trains"),
        (2.5, 9, r"no test case.*runs from 1.0 to 3.0"),
        ("soon", 4, "valid_from: got 'soon', wanted a number or an ISO date"),
    ],
)
def test_temporal_refuses_cuts_that_leave_a_part_empty(
    start: float | str, middle: float, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        temporal(two_users(), 2, valid_from=start, test_from=middle)


@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_cold_items_are_in_no_training_window_and_in_no_history(share: float, seed: int) -> None:
    events, log = random_log(seed)
    split = cold_items(log, ITEMS, share=share, seed=seed)
    sequences = reference_sequences(events)
    order = (1 + np.random.default_rng(seed).permutation(ITEMS)).tolist()
    order = [item for item in order if item in set(log.item.tolist())]
    drawn = order[: round(share * len(order))]
    train, history, valid, test = reference_cold_items(sequences, drawn, order)

    windows = TrainingWindows(split, max_length=5, overlap=1)
    seen = set(windows.sequences(torch.arange(len(windows))).flatten().tolist())
    assert not seen & set(drawn)
    for user, expected in train.items():
        number = int(user[1:])
        assert split.sequence(number)[: split.train_end[number]].tolist() == expected
        assert len(split.sequence(number)), "an empty history cannot be asked for a list"
    for cases, expected_cases in ((split.valid, valid), (split.test, test)):
        targets = split.target_items(cases).tolist()
        users = [f"u{user}" for user in cases.user.tolist()]
        assert set(zip(users, targets, strict=True)) == expected_cases
        assert len(users) == len(set(users))
    for user, position in zip(split.test.user.tolist(), split.test.position.tolist(), strict=True):
        assert split.sequence(user)[:position].tolist() == history[f"u{user}"]

    cold = [
        set(split.target_items(c)[split.is_cold(c)].tolist()) for c in (split.valid, split.test)
    ]
    assert cold[0] and cold[1] and not cold[0] & cold[1]
    before = [
        split.sequence(u)[:p] for u, p in zip(split.test.user, split.test.position, strict=True)
    ]
    assert not cold[1] & set(np.concatenate(before).tolist())


def test_cold_items_by_hand() -> None:
    """Items 5 and 1 are drawn, in this order: 5 serves validation, 1 the test."""
    order = 1 + np.random.default_rng(1).permutation(5)
    assert order[:2].tolist() == [5, 1]
    sequences = [
        [2, 3, 5, 4],  # validates on 5; its test case follows it
        [2, 5, 3, 1],  # 5 does not train; tests on 1
        [3, 1, 2, 4, 5],  # 5 is validation's, so there is no test case
        [4, 3, 1, 2],  # 1 is the test's, so there is no validation case, nor is it in the history
        [5, 1, 3, 2],  # nothing warm to train on before the cases: trains only
        [5, 1],  # neither trains, but the history is kept for who asks
    ]
    log = InteractionLog(
        user=np.repeat(np.arange(6), [len(own) for own in sequences]),
        item=np.concatenate(sequences),
        timestamp=np.concatenate([np.arange(float(len(own))) for own in sequences]),
        user_ids=tuple("abcdef"),
    )
    split = cold_items(log, 5, share=0.4, seed=1)
    assert [split.sequence(u).tolist() for u in range(6)] == [
        [2, 3, 5, 4],
        [2, 3, 1],
        [3, 2, 4],
        [4, 3, 2],
        [3, 2],
        [5, 1],
    ]
    assert split.train_end.tolist() == [2, 1, 2, 2, 2, 0]
    assert pairs(split.valid) == {("u0", 2), ("u1", 1), ("u2", 2)}
    assert pairs(split.test) == {("u0", 3), ("u1", 2), ("u3", 2)}
    assert split.is_cold(split.valid).tolist() == [True, False, False]
    assert split.is_cold(split.test).tolist() == [False, True, False]


def test_cold_items_differ_by_seed_and_share_and_are_refused_where_no_case_is_cold() -> None:
    _, log = random_log(0)
    chosen = [cold_items(log, ITEMS, share=s, seed=n) for s, n in ((0.3, 0), (0.3, 1), (0.5, 0))]
    digests = [digests_of(log, split) for split in chosen]
    assert len({(found["events"], found["split"]) for found in digests}) == 3
    with pytest.raises(DataError, match=r"no test case on a cold item.*raise share=0.0001"):
        cold_items(log, ITEMS, share=1e-4)
    assert check_cold_items(share=1.0, seed=0.5, min_train_events=0) == [
        "share: got 1.0, wanted 0.0001 to 0.9; such as 0.1",
        "seed: got 0.5, wanted a whole number; round it",
        "min_train_events: got 0, wanted at least 1; a case needs an event before it",
    ]
    with pytest.raises(DataError, match="share: got 0, wanted"):
        cold_items(log, ITEMS, share=0)


def test_temporal_keeps_or_drops_cases_on_new_items() -> None:
    log = InteractionLog(
        user=np.array([0, 0, 0, 0, 1, 1, 1]),
        item=np.array([1, 3, 4, 2, 2, 1, 4]),  # 3 and 4 have no event before time 5
        timestamp=np.array([0.0, 5.0, 7.0, 8.0, 1.0, 6.0, 9.0]),
        user_ids=("a", "b"),
    )
    kept = temporal(log, 4, valid_from=5, test_from=7)
    assert pairs(kept.valid) == {("u0", 1), ("u1", 1)}
    assert pairs(kept.test) == {("u0", 2), ("u0", 3), ("u1", 2)}
    assert kept.is_cold(kept.valid).tolist() == [True, False]
    assert kept.is_cold(kept.test).tolist() == [True, False, True]
    dropped = temporal(log, 4, valid_from=5, test_from=7, new_items="drop")
    assert pairs(dropped.valid) == {("u1", 1)} and pairs(dropped.test) == {("u0", 3)}
    assert dropped.sequence(0).tolist() == [1, 3, 4, 2]  # what the user took stays in the history
    with pytest.raises(DataError, match="no validation case"):
        temporal(log, 4, valid_from=5, test_from=6, new_items="drop")
    assert check_temporal(new_items="skip") == ["new_items: got 'skip', wanted one of keep, drop"]


@pytest.mark.parametrize(
    ("name", "events", "cases"),
    [
        ("leave_one_out", "822d1cfec5f348ff", "7510e976d0705f02"),
        ("ratio", "822d1cfec5f348ff", "e8cb2a1ee4ffd64b"),
        ("temporal", "822d1cfec5f348ff", "8f47e88666947749"),
    ],
)
def test_a_split_is_what_runs_of_earlier_versions_were_begun_with(
    name: str, events: str, cases: str
) -> None:
    _, log = random_log(5)
    found = digests_of(log, SPLITS[name](log, ITEMS))
    assert (found["events"][:16], found["split"][:16]) == (events, cases)


@pytest.mark.parametrize("name", SPLITS)
def test_a_log_of_another_catalogue_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="item row 2, the catalogue only 1 items"):
        SPLITS[name](two_users(), 1)
