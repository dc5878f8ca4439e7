"""What a network is asked: the next item at every position, or the masked items of a cloze.

From a recipe's ``objective.recommendation`` to the batch stream and the loss that go together.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from mmkd.data.batches import BatchStream, TrainingWindows
from mmkd.data.splits import SequenceSplit
from mmkd.data.tasks import Augmentation
from mmkd.losses.recommendation import GBCELoss, RecommendationLoss, SampledSoftmaxLoss, SoftmaxLoss

LossName = Literal["softmax", "sampled_softmax", "gbce"]
Sampling = Literal["uniform", "popularity"]
Candidates = Literal["all", "trained"]


class Supervision:
    """What both kinds share: the batches and the loss over the catalogue.

    Args:
        loss: ``softmax`` over the whole catalogue, or one of the sampled losses.
        negatives: Of a sampled loss; None is its own default.
        sampling: Of a sampled loss; None is its own default.
        calibration: Of ``gbce``; None is its own default.
        candidates: Which items compete with a target: ``all``, or only the ``trained``, which
            occur in training. An item that never occurs is otherwise always the wrong answer, and
            learns to score low whatever its text and picture say.
        window_step: See ``TrainingWindows``; None cuts each event once.

    Raises:
        ValueError: An option is set that the loss doesn't have, or is out of range.
    """

    name: ClassVar[Literal["next_item", "masked_item"]]
    causal: ClassVar[bool]  # which backbones can learn from it

    def __init__(
        self,
        *,
        loss: LossName = "softmax",
        negatives: int | None = None,
        sampling: Sampling | None = None,
        calibration: float | None = None,
        candidates: Candidates = "all",
        window_step: int | None = None,
    ) -> None:
        options: dict[str, Any] = {
            "negatives": negatives,
            "sampling": sampling,
            "calibration": calibration,
        }
        self.loss = loss
        self.candidates = candidates
        self.window_step = window_step
        self.options = {name: value for name, value in options.items() if value is not None}
        idle = sorted(set(self.options) - _TAKEN[loss])
        if idle:
            raise ValueError(f"loss {loss} has no {', '.join(idle)}; remove it")
        if window_step is not None and window_step < 1:
            raise ValueError(
                f"window_step: got {window_step}, wanted at least 1; null cuts each event once"
            )
        if negatives is not None and negatives < 1:
            raise ValueError(f"negatives: got {negatives}, wanted at least 1; raise it")
        if calibration is not None and not 0 <= calibration <= 1:
            raise ValueError(
                f"calibration: got {calibration}, wanted 0 to 1; 0 is plain binary cross-entropy"
            )

    def build_loss(self, train_counts: Tensor) -> RecommendationLoss:
        """The loss; ``train_counts`` [I + 1] is how often each item trains."""
        chosen = None
        if self.candidates == "trained":
            chosen = train_counts > 0
            train_counts = torch.cat([train_counts[:1], train_counts[chosen]])
        if self.loss == "softmax":
            return RecommendationLoss(SoftmaxLoss(), chosen)
        kind = SampledSoftmaxLoss if self.loss == "sampled_softmax" else GBCELoss
        return RecommendationLoss(kind(train_counts=train_counts, **self.options), chosen)

    @property
    def views(self) -> int:
        """How many altered views of a sequence a batch holds, beside the sequence itself."""
        return 0

    def altering(self) -> dict[str, Any]:
        """What ``BatchStream`` is told of the views."""
        return {}

    def without_contrast(self) -> Self:
        """The same without the views that only a contrastive loss reads."""
        return self

    def stream(
        self,
        split: SequenceSplit,
        *,
        max_length: int,
        batch_size: int,
        seed: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        clean: bool = False,
    ) -> BatchStream:
        """The batches of a split's training events; arguments as ``BatchStream``'s."""
        # windows overlap where one's last input is the next one's target; a bidirectional network
        # needs one place for the mask token at inference, which training then never uses either
        windows = TrainingWindows(
            split,
            max_length=max_length if self.causal else max_length - 1,
            overlap=1 if self.causal else 0,
            step=self.window_step,
            device=device,
        )
        return BatchStream(
            windows,
            supervision=self.name,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            accumulate=accumulate,
            clean=clean,
            **self.altering(),
        )


class NextItem(Supervision):
    """Predict the next item at every position (SASRec, GRU4Rec); for causal backbones.

    Args:
        views: Augmented views of each sequence, for a contrastive loss; they are not supervised.
        crop: See ``Augmentation``, and so are the next two.
        mask: Share of items that a masked view hides.
        reorder: Share of the sequence that a reordered view shuffles.
        loss: As for ``Supervision``, and so are the others.
        negatives: See ``loss``.
        sampling: See ``loss``.
        calibration: See ``loss``.
        candidates: See ``loss``.
        window_step: See ``loss``.

    Raises:
        ValueError: A share outside 0..1, or an option that the loss doesn't have.
    """

    name = "next_item"
    causal = True

    def __init__(
        self,
        *,
        views: int = 0,
        crop: float = 0.6,
        mask: float = 0.3,
        reorder: float = 0.6,
        loss: LossName = "softmax",
        negatives: int | None = None,
        sampling: Sampling | None = None,
        calibration: float | None = None,
        candidates: Candidates = "all",
        window_step: int | None = None,
    ) -> None:
        super().__init__(
            loss=loss,
            negatives=negatives,
            sampling=sampling,
            calibration=calibration,
            candidates=candidates,
            window_step=window_step,
        )
        self.augmentation = Augmentation(views=views, crop=crop, mask=mask, reorder=reorder)

    @property
    def views(self) -> int:
        """Augmented views."""
        return self.augmentation.views

    def altering(self) -> dict[str, Any]:
        """The augmentations."""
        return {"augmentation": self.augmentation}

    def without_contrast(self) -> Self:
        """No augmented views: they are not supervised."""
        other = copy(self)
        other.augmentation = replace(self.augmentation, views=0)
        return other


class MaskedItem(Supervision):
    """Predict masked items from both sides (BERT4Rec, arXiv:1904.06690); for bidirectional ones.

    Args:
        mask_ratio: Share of positions that are chosen.
        last_only: Share of sequences in which only the last item is masked, as at inference.
        views: Independently masked views of each sequence.
        loss: As for ``Supervision``, and so are the others.
        negatives: See ``loss``.
        sampling: See ``loss``.
        calibration: See ``loss``.
        candidates: See ``loss``.
        window_step: See ``loss``.

    Raises:
        ValueError: A share outside 0..1, no view, or an option that the loss doesn't have.
    """

    name = "masked_item"
    causal = False

    def __init__(
        self,
        *,
        mask_ratio: float = 0.15,
        last_only: float = 0.0,
        views: int = 1,
        loss: LossName = "softmax",
        negatives: int | None = None,
        sampling: Sampling | None = None,
        calibration: float | None = None,
        candidates: Candidates = "all",
        window_step: int | None = None,
    ) -> None:
        super().__init__(
            loss=loss,
            negatives=negatives,
            sampling=sampling,
            calibration=calibration,
            candidates=candidates,
            window_step=window_step,
        )
        for name, share in (("mask_ratio", mask_ratio), ("last_only", last_only)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: got {share}, wanted a share from 0 to 1")
        if views < 1:
            raise ValueError(f"views: got {views}, wanted at least 1: a sequence to predict in")
        self.mask_ratio = mask_ratio
        self.last_only = last_only
        self.masked_views = views

    @property
    def views(self) -> int:
        """Masked views."""
        return self.masked_views

    def altering(self) -> dict[str, Any]:
        """The cloze's shares and views."""
        return {
            "mask_ratio": self.mask_ratio,
            "last_only": self.last_only,
            "views": self.masked_views,
        }


SUPERVISION: dict[str, Callable[..., Supervision]] = {
    "next_item": NextItem,
    "masked_item": MaskedItem,
}
_TAKEN: dict[str, set[str]] = {
    "softmax": set(),
    "sampled_softmax": {"negatives", "sampling"},
    "gbce": {"negatives", "sampling", "calibration"},
}
