"""Training batches against naive loops over each user's own events."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmkd import MaskedItem, NextItem, SequenceSplit
from mmkd.data.batches import BatchStream, TrainingWindows, seeded_generator
from mmkd.data.splits import Cases
from mmkd.data.tasks import TASKS, Batch
from mmkd.errors import DataError

LENGTHS = (2, 3, 4, 7, 8, 9, 12, 20, 1, 0)  # of the users' training events
L = 4


def split_of(lengths: tuple[int, ...] = LENGTHS, held_out: int = 2) -> SequenceSplit:
    """Users with so many training events, then two to validate and test; no item occurs twice."""
    totals = np.array([n + held_out for n in lengths])
    offsets = np.concatenate([[0], np.cumsum(totals)])
    users = np.arange(len(lengths))
    return SequenceSplit(
        items=np.arange(1, offsets[-1] + 1),
        offsets=offsets,
        train_end=np.array(lengths),
        valid=Cases(users, np.array(lengths)),
        test=Cases(users, np.array(lengths) + 1),
        item_count=int(offsets[-1]),
    )


def training_events(split: SequenceSplit) -> list[list[int]]:
    return [split.sequence(u)[: split.train_end[u]].tolist() for u in range(split.user_count)]


def naive_windows(events: list[int], max_length: int, overlap: int) -> list[list[int]]:
    """From the latest event backwards, neighbours sharing `overlap` events."""
    windows, end = [], len(events)
    while end > overlap:
        windows.append(events[max(0, end - max_length - overlap) : end])
        end -= max_length
    return windows


def rows_of(sequences: Tensor) -> list[list[int]]:
    """Each row without its left padding; fails where padding is not on the left."""
    rows = []
    for row in sequences.tolist():
        real = [item for item in row if item]
        assert row == [0] * (len(row) - len(real)) + real
        rows.append(real)
    return rows


def same_batch(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("items", "views", "targets")
    )


# windows


@pytest.mark.parametrize("overlap", [0, 1])
def test_windows_are_those_of_a_naive_loop(overlap: int) -> None:
    split = split_of()
    windows = TrainingWindows(split, max_length=L, overlap=0 if overlap == 0 else 1)
    found = rows_of(windows.sequences(torch.arange(len(windows))))
    wanted = [w for own in training_events(split) for w in naive_windows(own, L, overlap)]
    assert sorted(found) == sorted(wanted)


def sliding_windows(events: list[int], span: int, step: int) -> list[list[int]]:
    """Whole windows, each `step` events before the last, and one from the first event on."""
    begins = [*range(len(events) - span, 0, -step), 0]
    return [events[begin : begin + span] for begin in begins]


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("step", [1, 2, 3, 10])
def test_sliding_windows_are_those_of_a_naive_loop(overlap: int, step: int) -> None:
    split = split_of()
    windows = TrainingWindows(split, max_length=L, overlap=0 if overlap == 0 else 1, step=step)
    wanted = [
        window
        for events in training_events(split)
        if len(events) > overlap
        for window in sliding_windows(events, L + overlap, step)
    ]
    got = rows_of(windows.sequences(torch.arange(len(windows))))
    assert sorted(got) == sorted(wanted)


def test_every_event_but_a_users_first_is_a_next_item_target_once() -> None:
    split = split_of()
    windows = TrainingWindows(split, max_length=L, overlap=1)
    targets: list[int] = []
    for ids in windows.epoch(batch_size=3, generator=seeded_generator(1)):
        batch = NextItem().batch(windows.sequences(ids), item_count=split.item_count)
        targets += batch.targets[batch.targets > 0].tolist()
    assert sorted(targets) == sorted(e for own in training_events(split) for e in own[1:])


def test_every_event_is_in_one_cloze_window() -> None:
    split = split_of()
    windows = TrainingWindows(split, max_length=L, overlap=0)
    events: list[int] = []
    for ids in windows.epoch(batch_size=3, generator=seeded_generator(1)):
        batch = MaskedItem(mask_ratio=1.0).batch(
            windows.sequences(ids), item_count=split.item_count, generator=seeded_generator(2)
        )
        events += batch.targets[batch.targets > 0].tolist()
    assert sorted(events) == sorted(e for own in training_events(split) for e in own)


def test_sequences_are_trimmed_to_the_longest_of_the_batch() -> None:
    windows = TrainingWindows(split_of((3, 5, 9)), max_length=10, overlap=1)
    assert windows.sequences(torch.tensor([0])).tolist() == [[1, 2, 3]]
    assert windows.sequences(torch.tensor([0, 1])).tolist() == [[0, 0, 1, 2, 3], [6, 7, 8, 9, 10]]


def test_no_training_event_is_an_error_with_a_remedy() -> None:
    with pytest.raises(DataError, match=r"fewer than 2 training events; lower .*min_rating"):
        TrainingWindows(split_of((1, 0, 1)), max_length=L, overlap=1)
    assert len(TrainingWindows(split_of((1, 0, 1)), max_length=L, overlap=0)) == 2


# an epoch


def test_an_epoch_is_a_permutation_that_the_generator_determines() -> None:
    windows = TrainingWindows(split_of(tuple(range(2, 90))), max_length=L, overlap=1)
    one, again, other = (
        windows.epoch(batch_size=7, generator=seeded_generator(seed)) for seed in (3, 3, 4)
    )
    assert sorted(torch.cat(one).tolist()) == list(range(len(windows)))
    assert [ids.tolist() for ids in one] == [ids.tolist() for ids in again]
    assert torch.cat(one).tolist() != torch.cat(other).tolist()
    assert sorted(len(ids) for ids in one)[1:] == [7] * (len(one) - 1)


def test_batches_hold_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(2, 21, 4000)
    windows = TrainingWindows(split_of(tuple(lengths.tolist())), max_length=20, overlap=1)

    def padding(batches: list[Tensor]) -> float:
        cells = [windows.sequences(ids) for ids in batches]
        return 1 - sum(int((c > 0).sum()) for c in cells) / sum(c.numel() for c in cells)

    shuffled = torch.randperm(len(windows), generator=seeded_generator(0))
    assert padding(list(torch.split(shuffled, 32))) > 0.35
    assert padding(windows.epoch(batch_size=32, generator=seeded_generator(0))) < 0.06


# next item


def test_next_item_batch_is_that_of_a_naive_loop() -> None:
    windows = TrainingWindows(split_of(), max_length=L, overlap=1)
    sequences = windows.sequences(torch.arange(len(windows)))
    batch = NextItem().batch(sequences, item_count=1000)
    supervised = [list(pairwise(row)) for row in rows_of(sequences)]
    found = [
        [(i, t) for i, t in zip(items, targets, strict=True) if t]
        for items, targets in zip(batch.items.tolist(), batch.targets[0].tolist(), strict=True)
    ]
    assert found == supervised
    assert torch.equal(batch.views, batch.items[None])
    assert not batch.targets[0][batch.items == 0].any()


# cloze


def clozes(sequences: Tensor, **options: Any) -> Batch:
    task = MaskedItem(**options)
    return task.batch(sequences, item_count=1000, generator=seeded_generator(5))


def many_sequences(rows: int = 4000, length: int = 12) -> Tensor:
    """Random items 1..1000, the first `length - n` places padded, n from 1 to `length`."""
    generator = seeded_generator(11)
    items = torch.randint(1, 1001, (rows, length), generator=generator)
    real = torch.randint(1, length + 1, (rows, 1), generator=generator)
    return items * (torch.arange(length, 0, -1) <= real)


def test_only_real_positions_are_chosen_and_one_at_least() -> None:
    sequences = many_sequences()
    batch = clozes(sequences, views=3)
    chosen = batch.targets > 0
    assert batch.targets.shape == (3, *sequences.shape)
    assert chosen.any(-1).all()
    assert not chosen[:, sequences == 0].any()
    everywhere = sequences.expand(3, -1, -1)
    assert torch.equal(batch.targets[chosen], everywhere[chosen])
    assert torch.equal(batch.views[~chosen], everywhere[~chosen])
    assert torch.equal(batch.items, sequences)


def test_views_are_masked_independently() -> None:
    batch = clozes(many_sequences(), views=2)
    chosen = (batch.targets > 0)[:, :, -1].double()  # the last position is always real
    # short sequences choose it more often, so compare within the full ones
    full = batch.items[:, 0] > 0
    both, alone = float((chosen[0] * chosen[1])[full].mean()), chosen[:, full].mean(1)
    assert both == pytest.approx(float(alone.prod()), abs=0.05)
    assert not torch.equal(chosen[0], chosen[1])


def within(share: float, wanted: float, n: int) -> bool:
    """Inside five standard deviations of a binomial share."""
    return bool(abs(share - wanted) < 5 * (wanted * (1 - wanted) / n) ** 0.5)


def test_shares_of_chosen_masked_random_and_kept() -> None:
    sequences = torch.randint(1, 1001, (2000, 40), generator=seeded_generator(1))
    batch = clozes(sequences, mask_ratio=0.3)
    chosen = batch.targets[0] > 0
    # the one that is always chosen matters in 0.7 ** 40 of the sequences only
    assert within(float(chosen.double().mean()), 0.3, chosen.numel())
    seen, real = batch.views[0][chosen], sequences[chosen]
    n = len(seen)
    masked, kept = seen == 1001, seen == real
    assert within(float(masked.double().mean()), 0.8, n)
    assert within(float(kept.double().mean()), 0.1 + 0.1 / 1000, n)
    random = seen[~masked & ~kept]
    assert within(len(random) / n, 0.1 - 0.1 / 1000, n)
    assert int(random.min()) >= 1 and int(random.max()) <= 1000
    assert float(random.double().mean()) == pytest.approx(500.5, abs=5 * 289 / len(random) ** 0.5)


def test_a_clean_view_comes_first_and_asks_nothing() -> None:
    sequences = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    masked = MaskedItem(views=3).batch(sequences, item_count=9, generator=seeded_generator(1))
    both = masked.with_clean_view()
    assert both.with_clean_view() is both and both.supervised_views == 3
    assert not masked.clean and both.clean
    assert torch.equal(both.views[0], sequences) and not both.targets[0].any()
    assert torch.equal(both.views[1:], masked.views)
    assert torch.equal(both.targets[1:], masked.targets)
    assert both.rows(1, 2).clean and both.rows(1, 2).views.shape == (4, 1, 4)


def test_last_only_masks_the_last_event_as_inference_does() -> None:
    sequences = many_sequences()
    always = clozes(sequences, last_only=1.0)
    assert torch.equal(always.targets[0, :, -1], sequences[:, -1])
    assert not always.targets[0, :, :-1].any()
    assert (always.views[0, :, -1] == 1001).all()
    assert torch.equal(always.views[0, :, :-1], sequences[:, :-1])

    half = clozes(sequences, last_only=0.5, mask_ratio=1.0)  # the rest choose every position
    long = sequences[:, -2] > 0
    lone = (half.targets[0] > 0).sum(-1)[long] == 1
    assert within(float(lone.double().mean()), 0.5, len(lone))


# the stream


def stream_of(
    task: str = "masked_item", *, seed: int = 7, rank: int = 0, world_size: int = 1
) -> BatchStream:
    return BatchStream(
        split_of(tuple(range(2, 40))),
        TASKS[task](views=2),
        max_length=L if task == "next_item" else L + 1,
        batch_size=8,
        seed=seed,
        rank=rank,
        world_size=world_size,
        clean=True,
    )


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_is_a_function_of_seed_epoch_and_step(task: str) -> None:
    used = stream_of(task)
    first = list(used.epoch(0))
    torch.manual_seed(99)  # the global state plays no part
    again = list(stream_of(task).epoch(0))
    assert len(first) == len(used) == len(again)
    assert all(same_batch(a, b) for a, b in zip(first, again, strict=True))
    for other in (used.epoch(1), stream_of(task, seed=8).epoch(0)):
        assert not all(
            a.items.shape == b.items.shape and same_batch(a, b)
            for a, b in zip(first, other, strict=True)
        )


@pytest.mark.parametrize("task", TASKS)
def test_first_step_continues_exactly(task: str) -> None:
    whole = list(stream_of(task).epoch(3))
    rest = list(stream_of(task).epoch(3, first_step=5))
    assert len(rest) == len(whole) - 5
    assert all(same_batch(a, b) for a, b in zip(whole[5:], rest, strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_the_ranks_rows_make_up_the_single_process_batch(task: str) -> None:
    alone = list(stream_of(task).epoch(2))
    ranks = [list(stream_of(task, rank=r, world_size=3).epoch(2)) for r in range(3)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        if len(whole.items) < 3:
            assert all(len(part.items) == 1 for part in parts)
            continue
        for r, part in enumerate(parts):
            assert same_batch(part, whole.rows(r, 3))
        assert sum(len(part.items) for part in parts) == len(whole.items)


def test_every_process_has_a_row_of_a_batch_that_is_too_small() -> None:
    options: dict[str, Any] = {"max_length": 8, "batch_size": 8, "seed": 0, "world_size": 3}
    for rank in range(3):
        stream = BatchStream(split_of((5, 5)), NextItem(), rank=rank, **options)
        assert [len(batch.items) for batch in stream.epoch(0)] == [1]


@pytest.mark.parametrize("task", TASKS)
def test_nobodys_held_out_event_appears(task: str) -> None:
    split = split_of(tuple(range(2, 40)))
    held_out = set(split.target_items(split.valid)) | set(split.target_items(split.test))
    shown: set[int] = set()
    for batch in stream_of(task).epoch(0):
        # a random item of the cloze may be any; the targets and the sequences may not
        shown |= set(batch.items.flatten().tolist()) | set(batch.targets.flatten().tolist())
    assert shown - {0} == {e for own in training_events(split) for e in own}
    assert not shown & held_out
