"""The whole objective: student outputs, a batch and teacher targets to one loss and its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmkd.data.tasks import Batch
from mmkd.distiller import CorrelationTargets
from mmkd.losses.attributes import AttributeLoss
from mmkd.losses.compression import CompressionLoss
from mmkd.losses.contrastive import ContrastiveLoss
from mmkd.losses.correlation import CorrelationLoss
from mmkd.losses.distributed import check_weights
from mmkd.losses.mutual import MutualLoss
from mmkd.losses.recommendation import RecommendationLoss
from mmkd.student import StudentOutput
from mmkd.student.ensemble import Inference


@dataclass(frozen=True)
class LossBreakdown:
    """What one step minimises.

    Attributes:
        total: The weighted sum, a scalar with a graph.
        parts: The unweighted terms by name, detached scalars.
    """

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class Taught:
    """What a trained ensemble makes of a batch.

    Attributes:
        outputs: Of its members, without a graph.
        inference: How they are put together.
    """

    outputs: Sequence[StudentOutput]
    inference: Inference


class Objective(nn.Module):
    """The terms of KDSR and of EMKD, whichever are given.

    With N networks and V supervised views:

        L_rec + 1/N [mu KD + 1/V (w_a BCE + w_i ICL + w_c CCL)]
              + sum over modalities (w_h holistic + w_d dissected) + compression

    L_rec is the mean over networks and views, the terms in brackets are sums over networks (BCE,
    ICL), over ordered pairs of networks (CCL) and over pairs (KD). This is EMKD's total
    (arXiv:2304.14668, section 4.5) divided by N V, so that its weights mean what they mean there
    while one network and one view give the plain loss. The correlations are KDSR's
    (arXiv:2401.07257, section 3.4), each a mean over the modality's different tables. Compression
    is a mean over networks.

    Holds the trainable heads, dropped after training.

    Args:
        recommendation: The loss at supervised positions.
        correlation: A ``CorrelationLoss`` by modality; empty for no distillation.
        holistic_weight: w_h, the same for every modality.
        dissected_weight: w_d.
        attributes: BCE; None for none.
        contrastive: ICL and CCL; None for none.
        mutual: KD; None for none. It replaces ``recommendation``'s own loss by the softmax over
            the same candidates.
        compression: Distances to a trained ensemble; None for none.
        views: V.
        exact_reference: Means over each view's positions, then over views, as the public code
            does; else over all positions at once.

    Raises:
        ValueError: A weight is below 0.
    """

    def __init__(
        self,
        recommendation: RecommendationLoss,
        *,
        correlation: Mapping[str, CorrelationLoss] | None = None,
        holistic_weight: float = 4.0,
        dissected_weight: float = 0.5,
        attributes: AttributeLoss | None = None,
        contrastive: ContrastiveLoss | None = None,
        mutual: MutualLoss | None = None,
        compression: CompressionLoss | None = None,
        views: int = 1,
        exact_reference: bool = False,
    ) -> None:
        super().__init__()
        check_weights(holistic_weight=holistic_weight, dissected_weight=dissected_weight)
        self.recommendation = recommendation
        self.weights = {"holistic": holistic_weight, "dissected": dissected_weight}
        self.correlation = nn.ModuleDict(dict(correlation or {}))
        self.attributes = attributes
        self.contrastive = contrastive
        self.mutual = mutual
        self.compression = compression
        self.views = views
        self.exact_reference = exact_reference

    def forward(
        self,
        outputs: Sequence[StudentOutput],
        batch: Batch,
        targets: Mapping[str, CorrelationTargets],
        teacher: Taught | None = None,
    ) -> LossBreakdown:
        """Compute the loss.

        Args:
            outputs: One per network; ``hidden`` is [V * B, L, D], V all views of the batch.
            batch: The batch they were computed on; ``clean`` for attributes and contrast.
            targets: Teacher correlations by modality (those of ``self.correlation``).
            teacher: What the ensemble to compress makes of the batch.

        Returns:
            Total and parts.
        """
        total, parts = self._predictions(outputs, batch)
        share = 1 / (len(outputs) * self.views)
        shape = (*batch.views.shape, -1)
        hidden = [out.hidden.view(shape) for out in outputs]  # N x [V, B, L, D]
        if self.attributes is not None:
            found = self.attributes([h[0] for h in hidden], batch.items, batch.targets[-1])
            total = total + share * self.attributes.weight * found
            parts["attributes"] = found.detach()
        if self.contrastive is not None:
            contrast = self.contrastive(hidden, batch.views)
            for name in ("intra", "cross"):
                value = getattr(contrast, name)
                total = total + share * getattr(self.contrastive, f"{name}_weight") * value
                parts[name] = value.detach()
        for name, loss in self.correlation.items():
            # a table that the networks share is one table
            tables = {id(out.modality[name]): out.modality[name] for out in outputs}
            distances = [loss(table, batch.items, targets[name]) for table in tables.values()]
            for part, weight in self.weights.items():
                value = torch.stack([getattr(each, part) for each in distances]).mean()
                total = total + weight * value
                parts[f"{part}.{name}"] = value.detach()
        if self.compression is not None and teacher is not None:
            value, found_parts = self._compressed(self.compression, outputs, batch, teacher)
            total = total + value
            parts |= found_parts
        return LossBreakdown(total=total, parts=parts)

    def _compressed(
        self,
        loss: CompressionLoss,
        outputs: Sequence[StudentOutput],
        batch: Batch,
        teacher: Taught,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        targets = batch.targets.flatten(0, 1)
        taught = [
            self.recommendation.supervised(out.hidden, out.item_matrix, targets)
            for out in teacher.outputs
        ]
        found = []
        for out in outputs:
            states, matrix, _ = self.recommendation.supervised(out.hidden, out.item_matrix, targets)
            found.append(
                loss(
                    states,
                    matrix,
                    [t[0] for t in taught],
                    [t[1] for t in taught],
                    teacher.inference,
                )
            )
        prediction = torch.stack([each.prediction for each in found]).mean()
        states_apart = torch.stack([each.states for each in found]).mean()
        return loss.weight * prediction + loss.states_weight * states_apart, {
            "compression": prediction.detach(),
            "compression.states": states_apart.detach(),
        }

    def _predictions(
        self, outputs: Sequence[StudentOutput], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The terms at supervised positions: cross-entropy, and what networks tell each other."""
        if not self.exact_reference:
            return self._positions(outputs, batch.targets.flatten(0, 1))
        views = len(batch.views)
        found = []
        for view in batch.targets.flatten(1).any(1).nonzero().flatten().tolist():
            seen = [
                StudentOutput(
                    hidden=out.hidden.chunk(views)[view],
                    modality=out.modality,
                    item_matrix=out.item_matrix,
                )
                for out in outputs
            ]
            found.append(self._positions(seen, batch.targets[view]))
        parts = {k: torch.stack([part[k] for _, part in found]).mean() for k in found[0][1]}
        return torch.stack([total for total, _ in found]).mean(), parts

    def _positions(
        self, outputs: Sequence[StudentOutput], targets: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.mutual is None:
            losses = [self.recommendation(o.hidden, o.item_matrix, targets) for o in outputs]
            total = torch.stack(losses).mean()
            return total, {"recommendation": total.detach()}
        found = [self.recommendation.supervised(o.hidden, o.item_matrix, targets) for o in outputs]
        states, matrices, wanted = zip(*found, strict=True)
        total, cross_entropy, mutual = self.mutual(states, matrices, wanted[0])
        return total, {"recommendation": cross_entropy, "mutual": mutual}
