"""Pairs of training events: which there are, how often each is drawn, and none that is held out."""

from collections import Counter

import numpy as np
import pytest

from mmkd import InteractionLog, SequenceSplit, TrainingPairs, TuningArguments
from mmkd.data.splits import SPLITS
from mmkd.errors import DataError


def _log(seed: int = 0, users: int = 40, items: int = 30) -> InteractionLog:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, users)
    user = np.repeat(np.arange(users), lengths)
    return InteractionLog(
        user,
        rng.zipf(1.5, len(user)) % items + 1,
        np.arange(len(user), dtype=float),
        tuple(map(str, range(users))),
    )


def _naive(split: SequenceSplit, present: np.ndarray, window: int) -> list[tuple[int, int]]:
    found = []
    for user in range(split.user_count):
        history = split.sequence(user)[: split.train_end[user]].tolist()
        for i, first in enumerate(history):
            for second in history[i + 1 : i + 1 + window]:
                if first != second and present[first] and present[second]:
                    found.append((first, second))
    return found


@pytest.mark.parametrize("kind", list(SPLITS))
def test_pairs_are_those_of_the_training_events_and_of_no_other(kind: str) -> None:
    split = SPLITS[kind](_log(), 30)
    present = np.arange(31) > 0
    present[4] = False
    for window in (1, 3):
        found = TrainingPairs.of(split, present, window=window)
        assert Counter(map(tuple, found.rows.tolist())) == Counter(_naive(split, present, window))


def test_a_held_out_pair_is_in_no_batch() -> None:
    """Every user ends with two items of its own: what it validates and tests on."""
    base = _log()
    users = len(base.user_ids)
    own = 31 + np.arange(2 * users)
    log = InteractionLog(
        np.concatenate([base.user, np.repeat(np.arange(users), 2)]),
        np.concatenate([base.item, own]),
        np.concatenate([base.timestamp, 1e6 + np.arange(2 * users)]),
        base.user_ids,
    )
    split = SPLITS["leave_one_out"](log, 30 + 2 * users)
    assert set(split.target_items(split.test)) | set(split.target_items(split.valid)) == set(own)
    pairs = TrainingPairs.of(split, np.arange(31 + 2 * users) > 0, window=5, popularity_power=0.5)
    for epoch in range(20):
        assert pairs.epoch(epoch, count=None, seed=1).max() <= 30


def test_rare_pairs_are_drawn_more_often_by_the_power() -> None:
    split = SPLITS["leave_one_out"](_log(), 30)
    pairs = TrainingPairs.of(split, np.arange(31) > 0, window=2, popularity_power=0.5)
    counts = split.train_counts()
    naive = np.array([(counts[a] * counts[b]) ** -0.5 for a, b in pairs.rows])
    np.testing.assert_allclose(pairs.weights, naive / naive.sum())
    drawn = np.concatenate([pairs.epoch(epoch, count=None, seed=0) for epoch in range(400)])
    expected = (pairs.weights * counts[pairs.rows[:, 0]]).sum()
    assert counts[drawn[:, 0]].mean() == pytest.approx(expected, rel=0.02)


def test_an_epoch_is_a_function_of_its_number_and_the_seed() -> None:
    split = SPLITS["leave_one_out"](_log(), 30)
    pairs = TrainingPairs.of(split, np.arange(31) > 0)
    one = pairs.epoch(0, count=50, seed=3)
    assert one.tolist() == pairs.epoch(0, count=50, seed=3).tolist()
    assert one.tolist() != pairs.epoch(1, count=50, seed=3).tolist()
    every = pairs.epoch(0, count=None, seed=3)
    assert sorted(every.tolist()) == sorted(pairs.rows.tolist())


def test_no_pair_is_refused() -> None:
    log = InteractionLog(np.zeros(6, int), np.ones(6, int), np.arange(6.0), ("a",))
    split = SPLITS["leave_one_out"](log, 1)
    with pytest.raises(DataError, match="no pair to learn from: in 4 training events"):
        TrainingPairs.of(split, np.array([False, True]))


def test_arguments_out_of_range_are_told_together() -> None:
    with pytest.raises(ValueError, match="batch_size: got 1") as caught:
        TuningArguments(batch_size=1, temperature=-1, keep=-0.5, lora_alpha=4)
    told = str(caught.value)
    assert all(name in told for name in ("temperature: got -1", "keep: got -0.5", "lora_alpha"))
