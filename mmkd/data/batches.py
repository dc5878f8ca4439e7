"""Training batches: a SequenceSplit to windows of its training events, and these to batches.

From one flat tensor of events, which stays on the device, to left-padded sequences [B, L] cut out
of it with a few vectorised calls, and what a task makes of them. Everything drawn is a function of
(seed, epoch, step), so that a run can go on anywhere.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from mmkd.data.soft_targets import SoftTargets
from mmkd.data.splits import SequenceSplit
from mmkd.data.tasks import Batch, Task
from mmkd.errors import DataError

BUCKET_BATCHES = 16  # batches that are sorted by length together; more trims more, mixes less


class Negatives(Protocol):
    """Draws the items that compete with a batch's targets, such as ``SampledSoftmax.draw``."""

    def __call__(self, targets: Tensor, *, generator: torch.Generator | None) -> Tensor:
        """Targets [V, B, L], of which M are asked, to [n] or [M, n] int64."""


class TrainingWindows:
    """The windows of every user's training events.

    A user's events are cut, from the latest backwards, into windows so that each event is a target
    once an epoch: with ``overlap`` 1 (next item) windows share one event, the last input of one
    being the first of the next; with 0 (cloze) they share none. With a ``step``, whole windows
    slide over the events instead, each ``step`` events before the one after it, until the first
    event is in: a long sequence is then seen many times an epoch, as EMKD (arXiv:2304.14668) does.

    Args:
        split: Sequences and where training ends.
        max_length: Longest input, L, in items.
        overlap: Events two neighbouring windows of a user share; 1 for next-item prediction.
        step: Events between the ends of two sliding windows; None cuts each event once.
        device: Where the tensors live.

    Raises:
        DataError: No user has enough training events for a single window.
    """

    def __init__(
        self,
        split: SequenceSplit,
        *,
        max_length: int,
        overlap: Literal[0, 1],
        step: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        span = max_length + overlap
        shortest = 1 + overlap
        begin, count = split.offsets[:-1], split.train_end
        if step is None:
            windows = np.maximum(-(-(count - overlap) // max_length), 0)
        else:
            windows = 1 + np.maximum(-(-(count - span) // step), 0)
        windows[count < shortest] = 0
        user = np.repeat(np.arange(len(count)), windows)
        nth = np.arange(len(user)) - np.repeat(np.cumsum(windows) - windows, windows)
        if step is None:
            end = begin[user] + count[user] - nth * max_length
        else:  # the earliest window starts at the first event and is whole too
            end = begin[user] + np.maximum(count[user] - nth * step, np.minimum(count[user], span))
        start = np.maximum(begin[user], end - span)
        if not len(user):
            raise DataError(
                f"no training sequence: every user has fewer than {shortest} training events; "
                "lower data.interactions.min_rating or choose another split"
            )
        self.item_count = split.item_count
        self.max_length = max_length
        self.device = torch.device(device)
        self._items = torch.from_numpy(split.items).to(self.device)
        self._end = torch.from_numpy(end).to(self.device)
        self._length = torch.from_numpy(end - start).to(self.device)

    def __len__(self) -> int:
        return len(self._end)

    def epoch(
        self, *, batch_size: int, generator: torch.Generator, accumulate: int = 1
    ) -> list[Tensor]:
        """Shuffle all windows into batches of similar length.

        Windows are shuffled, sorted by length inside groups of ``BUCKET_BATCHES`` batches and the
        batches shuffled again: padding nearly vanishes and every epoch mixes anew.

        Args:
            batch_size: Sequences a batch.
            generator: A CPU generator.
            accumulate: Batches whose gradients one optimiser step takes the mean of. They are dealt
                out of windows of similar length, or the mean would favour the shorter ones.

        Returns:
            Window ids a batch, each [B] int64 (the last may be shorter).
        """
        order = torch.randperm(len(self), generator=generator)
        length = self._length.cpu()
        step = batch_size * accumulate
        steps = [
            windows
            for group in torch.split(order, step * BUCKET_BATCHES)
            for windows in torch.split(group[length[group].argsort(stable=True)], step)
        ]
        shuffled = [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]
        # one with too few windows for all its batches comes last: the others keep their places
        shuffled.sort(key=lambda windows: len(windows) < accumulate)
        return [
            windows[part::accumulate]
            for windows in shuffled
            for part in range(min(accumulate, len(windows)))
        ]

    def sequences(self, windows: Tensor) -> Tensor:
        """The windows' events, [B, L'] int64, left-padded and trimmed to the longest of them."""
        windows = windows.to(self.device)
        length = self._length[windows]
        back = torch.arange(int(length.max()), 0, -1, device=self.device)
        index = (self._end[windows][:, None] - back).clamp_min(0)  # [B, L']
        return self._items[index].long() * (back <= length[:, None])


class BatchStream:
    """Yields each epoch's batches, the same on every process but for the rows it keeps.

    Args:
        split: Sequences and where training ends; cut as the task wants its windows.
        task: Makes a batch of the sequences.
        max_length: Longest sequence that the student reads, in items.
        batch_size: Sequences a global batch, over all processes.
        seed: Everything drawn is a function of (seed, epoch, step).
        device: Where the batches are made.
        rank: This process.
        world_size: How many processes share each batch.
        accumulate: See ``TrainingWindows.epoch``.
        clean: Put the sequences themselves among the views, for losses that read their states.
        soften: Shares the targets with neighbours.
        negatives: Draws what competes with a global batch's targets, of a sampled loss; None leaves
            it to the loss.

    Raises:
        DataError: No user has enough training events for a single window.
    """

    def __init__(
        self,
        split: SequenceSplit,
        task: Task,
        *,
        max_length: int,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        clean: bool = False,
        soften: SoftTargets | None = None,
        negatives: Negatives | None = None,
    ) -> None:
        self.windows = TrainingWindows(
            split,
            # at inference a bidirectional network needs one place for the mask token, so training
            # never uses that place either
            max_length=max_length if task.causal else max_length - 1,
            overlap=task.overlap,
            step=task.window_step,
            device=device,
        )
        self.task = task
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        self.clean = clean
        self.soften = soften and soften.to(device)
        self.negatives = negatives

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self._order(0))

    def epoch(self, epoch: int, *, first_step: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from ``first_step`` on."""
        order = self._order(epoch)
        for step in range(first_step, len(order)):
            ids = order[step]
            if len(ids) < self.world_size:  # every process needs a row: repeat the last ones
                ids = ids.repeat(self.world_size)[: self.world_size]
            batch = self.task.batch(
                self.windows.sequences(ids),
                item_count=self.windows.item_count,
                # a last part other than 0 parts this stream from the shuffle's
                generator=seeded_generator(self.seed, epoch, step, 2),
            )
            if self.soften is not None:
                drawn = seeded_generator(self.seed, epoch, step, 3)
                batch = self.soften(batch, epoch=epoch, generator=drawn)
            if self.negatives is not None:
                chance = seeded_generator(self.seed, epoch, step, 4)
                batch = replace(batch, negatives=self.negatives(batch.targets, generator=chance))
            batch = batch.with_clean_view() if self.clean else batch
            yield batch.rows(self.rank, self.world_size)

    def _order(self, epoch: int) -> list[Tensor]:
        return self.windows.epoch(
            batch_size=self.batch_size,
            generator=seeded_generator(self.seed, epoch),
            accumulate=self.accumulate,
        )


def seeded_generator(*parts: int) -> torch.Generator:
    """A CPU generator whose state is a function of ``parts`` alone, such as (seed, epoch, step)."""
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
