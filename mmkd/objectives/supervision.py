"""What a network is asked: the next item at every position, or the masked items of a cloze.

From a recipe's ``objective.recommendation`` to the batch stream and the loss that go together.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from mmkd.data.batches import BatchStream, TrainingWindows
from mmkd.data.sequences import SequenceSplit
from mmkd.objectives.recommendation import (
    GBCELoss,
    RecommendationLoss,
    SampledSoftmaxLoss,
    SoftmaxLoss,
)

LossName = Literal["softmax", "sampled_softmax", "gbce"]
Sampling = Literal["uniform", "popularity"]


class _Supervision:
    """What both kinds share: the loss over the catalogue.

    Args:
        loss: ``softmax`` over the whole catalogue, or one of the sampled losses.
        negatives: Of a sampled loss; None is its own default.
        sampling: Of a sampled loss; None is its own default.
        calibration: Of ``gbce``; None is its own default.

    Raises:
        ValueError: An option is set that the loss doesn't have.
    """

    def __init__(
        self,
        *,
        loss: LossName = "softmax",
        negatives: int | None = None,
        sampling: Sampling | None = None,
        calibration: float | None = None,
    ) -> None:
        options = {"negatives": negatives, "sampling": sampling, "calibration": calibration}
        self.loss = loss
        self.options = {name: value for name, value in options.items() if value is not None}
        taken = {
            "softmax": set(),
            "sampled_softmax": {"negatives", "sampling"},
            "gbce": {"negatives", "sampling", "calibration"},
        }[loss]
        idle = sorted(set(self.options) - taken)
        if idle:
            raise ValueError(f"loss {loss} has no {', '.join(idle)}; remove it")

    def build_loss(self, train_counts: Tensor) -> RecommendationLoss:
        """The loss; ``train_counts`` [I + 1] is how often each item trains."""
        build: dict[str, type[nn.Module]] = {
            "sampled_softmax": SampledSoftmaxLoss,
            "gbce": GBCELoss,
        }
        if self.loss == "softmax":
            return RecommendationLoss(SoftmaxLoss())
        return RecommendationLoss(build[self.loss](train_counts=train_counts, **self.options))


class NextItem(_Supervision):
    """Predict the next item at every position (SASRec, GRU4Rec); for causal backbones."""

    causal = True

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
    ) -> BatchStream:
        """The batches of a split's training events."""
        return BatchStream(
            TrainingWindows(split, max_length=max_length, overlap=1, device=device),
            supervision="next_item",
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )


class MaskedItem(_Supervision):
    """Predict masked items from both sides (BERT4Rec, arXiv:1904.06690); for bidirectional ones.

    Args:
        mask_ratio: Share of positions that are chosen.
        last_only: Share of sequences in which only the last item is masked, as at inference.
        loss: As for ``NextItem``, and so are the others.
        negatives: See ``loss``.
        sampling: See ``loss``.
        calibration: See ``loss``.

    Raises:
        ValueError: A share outside 0..1, or an option that the loss doesn't have.
    """

    causal = False

    def __init__(
        self,
        *,
        mask_ratio: float = 0.15,
        last_only: float = 0.0,
        loss: LossName = "softmax",
        negatives: int | None = None,
        sampling: Sampling | None = None,
        calibration: float | None = None,
    ) -> None:
        super().__init__(loss=loss, negatives=negatives, sampling=sampling, calibration=calibration)
        for name, share in (("mask_ratio", mask_ratio), ("last_only", last_only)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: got {share}, wanted a share from 0 to 1")
        self.mask_ratio = mask_ratio
        self.last_only = last_only

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
    ) -> BatchStream:
        """The batches of a split's training events."""
        return BatchStream(
            # one place is the mask token's at inference, so training never uses it either
            TrainingWindows(split, max_length=max_length - 1, overlap=0, device=device),
            supervision="masked_item",
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world_size=world_size,
            mask_ratio=self.mask_ratio,
            last_only=self.last_only,
        )


Supervision = NextItem | MaskedItem

SUPERVISION: dict[str, Callable[..., Supervision]] = {
    "next_item": NextItem,
    "masked_item": MaskedItem,
}
