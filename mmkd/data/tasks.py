"""Tasks: windows of events to the batch a network learns from, vectorised and on their device.

From left-padded sequences [B, L] to the views [V, B, L] that the networks see and to what is asked
of each of their positions: the next item (SASRec, arXiv:1808.09781) or the masked ones (BERT4Rec,
arXiv:1904.06690, section 3.6). Views for a contrastive loss on the next item are the crop, mask
and reorder of CL4SRec (arXiv:2010.14395, section 3.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from mmkd.errors import at_least, refuse, within


@dataclass(frozen=True)
class Batch:
    """One training batch.

    Attributes:
        items: Unmasked sequences, [B, L] int64, left-padded with 0.
        views: What the networks see, [V, B, L] int64; one or more variants of ``items``.
        targets: Item to predict at each position of each view, [V, B, L] int64; 0 = unsupervised.
        clean: Whether ``views[0]`` is ``items`` itself.
        supervised_views: How many of the views have targets.
        soft_share: Share of every target that its neighbours get in the loss, see ``SoftTargets``.
        member_targets: [N, V, B, L], where the networks of an ensemble have targets of their own.
        member_shares: By network, what ``soft_share`` is multiplied by; None = 1.
        negatives: [n] int64 items that compete with all targets, or [M, n] with each of the M; None
            where the loss draws its own or needs none.
    """

    items: Tensor
    views: Tensor
    targets: Tensor
    clean: bool = False
    supervised_views: int = 1
    soft_share: float = 0.0
    member_targets: Tensor | None = None
    member_shares: Sequence[float] | None = None
    negatives: Tensor | None = None

    def with_clean_view(self) -> "Batch":
        """The same with the sequences themselves before the other views, without targets."""
        if self.clean:
            return self
        unasked, own = torch.zeros_like(self.items), self.member_targets
        return replace(
            self,
            views=torch.cat([self.items[None], self.views]),
            targets=torch.cat([unasked[None], self.targets]),
            member_targets=own if own is None else F.pad(own, (0, 0, 0, 0, 1, 0)),
            clean=True,
        )

    def rows(self, start: int, step: int) -> "Batch":
        """Every ``step``-th sequence from ``start``: one process's share of a global batch."""
        own, negatives = self.member_targets, self.negatives
        if negatives is not None and negatives.ndim == 2:
            ours = torch.zeros_like(self.targets, dtype=torch.bool)
            ours[:, start::step] = True
            negatives = negatives[ours[self.targets > 0]]
        return replace(
            self,
            items=self.items[start::step],
            views=self.views[:, start::step],
            targets=self.targets[:, start::step],
            member_targets=own if own is None else own[:, :, start::step],
            negatives=negatives,
        )

    def touched(self, item_count: int) -> Tensor:
        """[R] int64, ascending: padding, every item that is read or asked about, the mask token.

        Args:
            item_count: I.
        """
        ends = self.items.new_tensor([0, item_count + 1])
        named = (self.items, self.views, self.targets, self.member_targets, self.negatives)
        numbers = torch.cat([ends, *(part.flatten() for part in named if part is not None)])
        if len(numbers) < item_count:
            distinct: Tensor = torch.unique(numbers)
            return distinct
        seen = torch.zeros(item_count + 2, dtype=torch.bool, device=numbers.device)
        seen[numbers] = True  # no sort, where it would be of more numbers than there are items
        return seen.nonzero().squeeze(1)


class Task(Protocol):
    """What batches and the trainer read of a task; one of your own needs no more than this."""

    @property
    def causal(self) -> bool:
        """Whether it is for networks that look back only, or for those that look both ways."""

    @property
    def overlap(self) -> Literal[0, 1]:
        """Events that a window holds beyond the L that the networks see."""

    @property
    def window_step(self) -> int | None:
        """Events between the ends of two sliding windows; None cuts each event once."""

    def without_contrast(self) -> "Task":
        """The same without the views that only a contrastive loss reads."""

    def batch(
        self, sequences: Tensor, *, item_count: int, generator: torch.Generator | None
    ) -> Batch:
        """Sequences [B, L + overlap] to a batch; all that is drawn comes from the generator."""


@dataclass(frozen=True, kw_only=True)
class NextItem:
    """Predict the next item at every position (SASRec, GRU4Rec, RGAT); for causal backbones.

    >>> from mmkd import NextItem
    >>> import torch
    >>> batch = NextItem().batch(torch.tensor([[0, 5, 6, 7]]), item_count=9)
    >>> batch.items.tolist(), batch.targets.tolist()
    ([[0, 5, 6]], [[[0, 6, 7]]])

    Attributes:
        views: Altered views of each sequence, for a contrastive loss; they are not supervised.
            Every view of every sequence gets one of the three kinds, drawn evenly.
        crop: Share of a sequence that a crop keeps, in one piece; 0 never crops.
        mask: Share of its items that become the mask token; 0 never masks.
        reorder: Share of it, in one piece, whose order is drawn anew; 0 never reorders.
        window_step: See ``TrainingWindows``; None cuts each event once.

    Raises:
        ValueError: A count or share out of range, or views of no kind; a line for each.
    """

    views: int = 0
    crop: float = 0.6
    mask: float = 0.3
    reorder: float = 0.6
    window_step: int | None = None

    causal: ClassVar[bool] = True
    overlap: ClassVar[Literal[0, 1]] = 1  # a window's last event is only a target
    supervised_views: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        refuse(self.check(**vars(self)))

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        shares = {name: options[name] for name in ("crop", "mask", "reorder") if name in options}
        problems = [
            *at_least(0, "0 makes none", views=options.get("views")),
            *within(0, 1, "0 leaves the kind out", **shares),
            *_window_step_problems(options),
        ]
        if options.get("views") and len(shares) == 3 and not any(shares.values()):
            problems.append("crop, mask, reorder: all 0, so the views would not differ; raise one")
        return problems

    def without_contrast(self) -> Self:
        """No altered views."""
        return replace(self, views=0)

    def batch(
        self, sequences: Tensor, *, item_count: int, generator: torch.Generator | None = None
    ) -> Batch:
        """Shifted targets at every real position of the sequence itself.

        Args:
            sequences: Windows of up to L + 1 events, [B, L + 1] int64, left-padded.
            item_count: I; the mask token is I + 1.
            generator: A CPU generator; draws the altered views.

        Returns:
            A batch with items and ``views[0]`` [B, L] = all but the last event, ``targets[0]`` =
            all but the first.
        """
        items, targets = sequences[:, :-1], sequences[:, 1:]
        # a padded input predicts nothing, though the first real event stands behind it as target
        targets = targets * (items > 0)
        views, wanted = items[None], targets[None]
        if self.views:
            more = self._altered(items, item_count, generator)
            views = torch.cat([views, more])  # [1 + V, B, L]
            wanted = torch.cat([wanted, torch.zeros_like(more)])
        return Batch(items=items, views=views, targets=wanted, clean=True)

    def _altered(self, items: Tensor, item_count: int, generator: torch.Generator | None) -> Tensor:
        """[B, L] to [V, B, L], left-padded; a view keeps at least one item, if there is one."""
        batch, length = items.shape
        device, shape = items.device, (self.views, batch, length)
        count = (items > 0).sum(-1)  # [B]
        place = torch.arange(length, device=device) - (length - count[:, None])  # [B, L], < 0: pad
        start_draw = torch.rand(shape[:2], generator=generator).to(device)
        draw = torch.rand(shape, generator=generator).to(device)
        views = items.expand(shape)
        made = []
        if self.crop:
            kept = (count * self.crop).long().clamp(min=1).minimum(count)  # [B]
            start = (start_draw * (count - kept + 1)).long()  # [V, B]
            moved = count - kept - start  # to the right, where sequences end
            index = torch.arange(length, device=device) - moved[..., None]  # [V, B, L]
            inside = place >= (count - kept)[:, None]
            made.append(views.gather(-1, index.clamp(min=0)) * inside)
        if self.mask:
            # the places of the smallest draws: an exact share of each sequence
            order = draw.masked_fill(place < 0, 2.0).argsort(-1).argsort(-1)
            chosen = order < (count * self.mask).long()[:, None]
            made.append(torch.where(chosen & (place >= 0), item_count + 1, views))
        if self.reorder:
            size = (count * self.reorder).long()  # [B]
            start = (start_draw * (count - size + 1)).long()[..., None]  # [V, B, 1]
            inside = (place >= start) & (place < start + size[:, None])
            # keys between those of the neighbours on both sides, in an order of their own
            key = torch.where(inside, start - 0.5 + draw * size[:, None], place.to(draw.dtype))
            made.append(views.gather(-1, key.argsort(-1)))
        kind = (torch.rand(shape[:2], generator=generator) * len(made)).long().to(device)  # [V, B]
        return torch.stack(made).gather(0, kind[None, :, :, None].expand(1, *shape))[0]


@dataclass(frozen=True, kw_only=True)
class MaskedItem:
    """Predict masked items from both sides (BERT4Rec); for bidirectional backbones.

    >>> from mmkd import MaskedItem
    >>> import torch
    >>> task = MaskedItem(last_only=1.0)  # as at inference: the last item, always masked
    >>> batch = task.batch(torch.tensor([[0, 5, 6, 7]]), item_count=9)
    >>> batch.views.tolist(), batch.targets.tolist()
    ([[[0, 5, 6, 10]]], [[[0, 0, 0, 7]]])

    Attributes:
        mask_ratio: Share of real positions that are chosen, one at least in each sequence. Of
            these 80% become the mask token, 10% a random item, 10% stay.
        last_only: Share of sequences in which only the last event is chosen and always masked,
            which is what inference asks.
        views: V, independently masked views of each sequence, all of them supervised.
        window_step: See ``TrainingWindows``; None cuts each event once.

    Raises:
        ValueError: A share or count out of range; a line for each.
    """

    mask_ratio: float = 0.15
    last_only: float = 0.0
    views: int = 1
    window_step: int | None = None

    causal: ClassVar[bool] = False
    overlap: ClassVar[Literal[0, 1]] = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        refuse(self.check(**vars(self)))

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        shares = {name: options.get(name) for name in ("mask_ratio", "last_only")}
        return [
            *within(0, 1, "it is a share", **shares),
            *at_least(1, "a sequence is predicted in one", views=options.get("views")),
            *_window_step_problems(options),
        ]

    @property
    def supervised_views(self) -> int:
        """All of them."""
        return self.views

    def without_contrast(self) -> Self:
        """The same: its views are supervised."""
        return self

    def batch(
        self, sequences: Tensor, *, item_count: int, generator: torch.Generator | None = None
    ) -> Batch:
        """Independently masked views of each sequence, with targets at the chosen positions.

        Args:
            sequences: [B, L] int64, left-padded.
            item_count: I; the mask token is I + 1.
            generator: A CPU generator.
        """
        batch, length = sequences.shape
        device, shape = sequences.device, (self.views, batch, length)
        draw = torch.rand(shape, generator=generator).to(device)
        real = (sequences > 0).expand(shape)
        # the smallest draw among real positions is always chosen: none goes without a target
        least = draw.masked_fill(~real, 2.0).amin(-1, keepdim=True)
        chosen = real & ((draw < self.mask_ratio) | (draw == least))
        change = torch.rand(shape, generator=generator).to(device)
        if self.last_only > 0:
            alone = torch.rand(shape[:2], generator=generator) < self.last_only
            alone = alone.to(device)[..., None]
            last = torch.arange(length, device=device) == length - 1
            chosen = torch.where(alone, last & real, chosen)
            change = torch.where(alone, torch.zeros_like(change), change)
        random_items = torch.randint(1, item_count + 1, shape, generator=generator).to(device)
        other = torch.where(change < 0.9, random_items, sequences)
        seen = torch.where(change < 0.8, item_count + 1, other)
        return Batch(
            items=sequences,
            views=torch.where(chosen, seen, sequences.expand(shape)),
            targets=torch.where(chosen, sequences.expand(shape), 0),
            supervised_views=self.views,
        )


def _window_step_problems(options: dict[str, Any]) -> list[str]:
    return at_least(1, "null cuts each event once", window_step=options.get("window_step"))


TASKS: dict[str, type[NextItem] | type[MaskedItem]] = {
    "next_item": NextItem,
    "masked_item": MaskedItem,
}
