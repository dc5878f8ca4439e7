"""Training batches: windows of events to left-padded, supervised [B, L] tensors on the device.

Data is small next to the model, so batches, masks and augmentations are made on the device with a
few vectorised calls: no worker processes, no per-sample Python. A batch depends on (seed, epoch,
step) alone, so an interrupted run continues exactly and every process of a distributed run can
build the same global batch and keep its own rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmkd.data.augmentations import Augmentation, augmented_views
from mmkd.data.windows import TrainingWindows


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        items: Unmasked sequences, [B, L] int64, left-padded with 0.
        views: What the networks see, [V, B, L] int64; one or more variants of ``items``.
        targets: Item to predict at each position of each view, [V, B, L] int64; 0 = unsupervised.
        clean: Whether ``views[0]`` is ``items`` itself.
    """

    items: Tensor
    views: Tensor
    targets: Tensor
    clean: bool = False

    def rows(self, start: int, step: int) -> "Batch":
        """Every ``step``-th sequence from ``start``: one process's share of a global batch."""
        return Batch(
            items=self.items[start::step],
            views=self.views[:, start::step],
            targets=self.targets[:, start::step],
            clean=self.clean,
        )


def next_item_batch(
    sequences: Tensor,
    *,
    augmentation: Augmentation | None = None,
    item_count: int = 0,
    generator: torch.Generator | None = None,
) -> Batch:
    """Shifted targets at every real position of the sequence itself.

    Args:
        sequences: Windows of up to L + 1 events, [B, L + 1] int64, left-padded.
        augmentation: Further views, without targets; None for none.
        item_count: I; augmentations may put the mask token, I + 1.
        generator: A CPU generator, for augmentations.

    Returns:
        A batch with items and ``views[0]`` [B, L] = all but the last event, ``targets[0]`` = all
        but the first.
    """
    items, targets = sequences[:, :-1], sequences[:, 1:]
    # a padded input predicts nothing, though the first real event stands behind it as its target
    targets = targets * (items > 0)
    views, wanted = items[None], targets[None]
    if augmentation is not None and augmentation.views:
        more = augmented_views(items, augmentation, item_count=item_count, generator=generator)
        views = torch.cat([views, more])  # [1 + V, B, L]
        wanted = torch.cat([wanted, torch.zeros_like(more)])
    return Batch(items=items, views=views, targets=wanted, clean=True)


def cloze_batch(
    sequences: Tensor,
    *,
    item_count: int,
    generator: torch.Generator,
    views: int = 1,
    mask_ratio: float = 0.15,
    last_only: float = 0.0,
    clean: bool = False,
) -> Batch:
    """Independently masked views of each sequence, as BERT4Rec (arXiv:1904.06690, section 3.6).

    Of the chosen positions 80% become the mask token, 10% a random item, 10% stay. Each sequence
    has at least one chosen position.

    Args:
        sequences: [B, L] int64, left-padded.
        item_count: I; the mask token is I + 1.
        generator: A CPU generator.
        views: V, how many masked variants a sequence.
        mask_ratio: Share of real positions that are chosen.
        last_only: Share of sequences in which only the last event is chosen and always masked,
            which is what inference asks.
        clean: Put the unmasked sequences before the masked views, without targets.

    Returns:
        A batch with targets at the chosen positions only.
    """
    batch, length = sequences.shape
    device, shape = sequences.device, (views, batch, length)
    draw = torch.rand(shape, generator=generator).to(device)
    real = (sequences > 0).expand(shape)
    # the smallest draw among real positions is always chosen: no sequence goes without a target
    least = draw.masked_fill(~real, 2.0).amin(-1, keepdim=True)
    chosen = real & ((draw < mask_ratio) | (draw == least))
    fate = torch.rand(shape, generator=generator).to(device)
    if last_only > 0:
        lone = (torch.rand(shape[:2], generator=generator) < last_only).to(device)[..., None]
        last = torch.arange(length, device=device) == length - 1
        chosen = torch.where(lone, last & real, chosen)
        fate = torch.where(lone, torch.zeros_like(fate), fate)
    random_items = torch.randint(1, item_count + 1, shape, generator=generator).to(device)
    seen = torch.where(fate < 0.8, item_count + 1, torch.where(fate < 0.9, random_items, sequences))
    seen = torch.where(chosen, seen, sequences.expand(shape))
    targets = torch.where(chosen, sequences.expand(shape), 0)
    if clean:
        seen = torch.cat([sequences[None], seen])  # [1 + V, B, L]
        targets = torch.cat([torch.zeros_like(sequences)[None], targets])
    return Batch(items=sequences, views=seen, targets=targets, clean=clean)


def seeded_generator(*parts: int) -> torch.Generator:
    """A CPU generator whose state is a function of ``parts`` alone, such as (seed, epoch, step)."""
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


class BatchStream:
    """Yields each epoch's batches, the same on every process but for the rows it keeps.

    Args:
        windows: What to draw from.
        supervision: ``next_item`` or ``masked_item``.
        batch_size: Sequences a global batch, over all processes.
        seed: Everything drawn is a function of (seed, epoch, step).
        rank: This process.
        world_size: How many processes share each batch.
        views: Masked views a sequence (masked_item only).
        mask_ratio: See ``cloze_batch``.
        last_only: See ``cloze_batch``.
        clean: See ``cloze_batch``; a next-item batch always has the sequence itself as a view.
        augmentation: See ``next_item_batch``.
        accumulate: See ``TrainingWindows.epoch``.
    """

    def __init__(
        self,
        windows: TrainingWindows,
        *,
        supervision: Literal["next_item", "masked_item"],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        views: int = 1,
        mask_ratio: float = 0.15,
        last_only: float = 0.0,
        clean: bool = False,
        augmentation: Augmentation | None = None,
        accumulate: int = 1,
    ) -> None:
        self.windows = windows
        self.accumulate = accumulate
        self.supervision = supervision
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.views = views
        self.mask_ratio = mask_ratio
        self.last_only = last_only
        self.clean = clean
        self.augmentation = augmentation

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
            sequences = self.windows.sequences(ids)
            # a last part other than 0 parts this stream from the shuffle's
            generator = seeded_generator(self.seed, epoch, step, 2)
            if self.supervision == "next_item":
                batch = next_item_batch(
                    sequences,
                    augmentation=self.augmentation,
                    item_count=self.windows.item_count,
                    generator=generator,
                )
            else:
                batch = cloze_batch(
                    sequences,
                    item_count=self.windows.item_count,
                    generator=generator,
                    views=self.views,
                    mask_ratio=self.mask_ratio,
                    last_only=self.last_only,
                    clean=self.clean,
                )
            yield batch.rows(self.rank, self.world_size)

    def _order(self, epoch: int) -> list[Tensor]:
        return self.windows.epoch(
            batch_size=self.batch_size,
            generator=seeded_generator(self.seed, epoch),
            accumulate=self.accumulate,
        )
