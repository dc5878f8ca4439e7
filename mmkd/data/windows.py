"""Training windows: a SequenceSplit to left-padded [B, L] pieces of its training events.

All sequences stay on the device as one flat tensor; a batch is cut out of it with a few vectorised
calls.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmkd.data.errors import DataError
from mmkd.data.sequences import SequenceSplit

BUCKET_BATCHES = 16  # batches that are sorted by length together; more trims more, mixes less


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
        return self._items[index] * (back <= length[:, None])
