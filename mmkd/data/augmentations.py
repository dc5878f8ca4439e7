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
