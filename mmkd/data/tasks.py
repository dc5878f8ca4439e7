"""Augmentations: sequences [B, L] to V altered views [V, B, L], all views in one go on the device.

Crop, mask and reorder of CL4SRec (Xie et al., arXiv:2010.14395, section 3.2): views for networks
that learn the next item, whose sequences are not masked anyway.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How sequences are altered; every view of every sequence gets one kind, drawn evenly.

    Attributes:
        views: V.
        crop: Share of a sequence that a crop keeps, in one piece; 0 never crops.
        mask: Share of its items that become the mask token; 0 never masks.
        reorder: Share of it, in one piece, whose order is drawn anew; 0 never reorders.
    """

    views: int
    crop: float = 0.6
    mask: float = 0.3
    reorder: float = 0.6

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ValueError: A count below 0, a share outside 0..1, or views of no kind; a line for each.
        """
        wrong = [
            f"{name}: got {share}, wanted a share from 0 to 1; 0 leaves the kind out"
            for name, share in self._shares().items()
            if not 0 <= share <= 1
        ]
        if self.views < 0:
            wrong.append(f"views: got {self.views}, wanted 0 or more; 0 makes none")
        if self.views and not any(self._shares().values()):
            wrong.append("crop, mask, reorder: all 0, so the views would not differ; raise one")
        if wrong:
            raise ValueError("\n".join(wrong))

    def _shares(self) -> dict[str, float]:
        return {"crop": self.crop, "mask": self.mask, "reorder": self.reorder}


def augmented_views(
    sequences: Tensor,
    augmentation: Augmentation,
    *,
    item_count: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Alter sequences.

    Args:
        sequences: [B, L] int64, left-padded.
        augmentation: What may happen to them.
        item_count: I; the mask token is I + 1.
        generator: A CPU generator.

    Returns:
        [V, B, L] int64, left-padded; a view keeps at least one item of a sequence that has one.
    """
    batch, length = sequences.shape
    device, shape = sequences.device, (augmentation.views, batch, length)
    count = (sequences > 0).sum(-1)  # [B]
    place = torch.arange(length, device=device) - (length - count[:, None])  # [B, L], < 0: padding
    start_draw = torch.rand(shape[:2], generator=generator).to(device)
    draw = torch.rand(shape, generator=generator).to(device)
    views = sequences.expand(shape)
    made = []
    if augmentation.crop:
        kept = (count * augmentation.crop).long().clamp(min=1).minimum(count)  # [B]
        start = (start_draw * (count - kept + 1)).long()  # [V, B]
        moved = count - kept - start  # to the right, where sequences end
        index = torch.arange(length, device=device) - moved[..., None]  # [V, B, L]
        inside = place >= (count - kept)[:, None]
        made.append(views.gather(-1, index.clamp(min=0)) * inside)
    if augmentation.mask:
        # the places of the smallest draws: an exact share of each sequence
        order = draw.masked_fill(place < 0, 2.0).argsort(-1).argsort(-1)
        chosen = order < (count * augmentation.mask).long()[:, None]
        made.append(torch.where(chosen & (place >= 0), item_count + 1, views))
    if augmentation.reorder:
        size = (count * augmentation.reorder).long()  # [B]
        start = (start_draw * (count - size + 1)).long()[..., None]  # [V, B, 1]
        inside = (place >= start) & (place < start + size[:, None])
        # keys between those of the neighbours on both sides, in an order of their own
        key = torch.where(inside, start - 0.5 + draw * size[:, None], place.to(draw.dtype))
        made.append(views.gather(-1, key.argsort(-1)))
    kind = (torch.rand(shape[:2], generator=generator) * len(made)).long().to(device)  # [V, B]
    return torch.stack(made).gather(0, kind[None, :, :, None].expand(1, *shape))[0]


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
