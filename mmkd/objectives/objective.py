"""The whole objective: student outputs, a batch and teacher targets to one loss and its parts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmkd.data.batches import Batch
from mmkd.distiller import CorrelationTargets
from mmkd.objectives.correlation import CorrelationLoss
from mmkd.objectives.recommendation import RecommendationLoss
from mmkd.student import StudentOutput


@dataclass(frozen=True)
class LossBreakdown:
    """What one step minimises.

    Attributes:
        total: The weighted sum, a scalar with a graph.
        parts: The unweighted terms by name, detached scalars.
    """

    total: Tensor
    parts: dict[str, Tensor]


class Objective(nn.Module):
    """``L_rec + sum over modalities of (w_h * holistic + w_d * dissected)``.

    KDSR (arXiv:2401.07257), section 3.4. Holds the trainable distillation heads. Each term is the
    mean over the networks' outputs, so one network is no special case.

    Args:
        recommendation: The loss at supervised positions.
        correlation: A ``CorrelationLoss`` by modality; empty for no distillation.
        holistic_weight: w_h, the same for every modality.
        dissected_weight: w_d.

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
    ) -> None:
        super().__init__()
        self.recommendation = recommendation
        self.weights = {"holistic": holistic_weight, "dissected": dissected_weight}
        for name, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(
                    f"{name}_weight: got {weight}, wanted 0 or more; 0 leaves the term out"
                )
        self.correlation = nn.ModuleDict(dict(correlation or {}))

    def forward(
        self,
        outputs: Sequence[StudentOutput],
        batch: Batch,
        targets: Mapping[str, CorrelationTargets],
    ) -> LossBreakdown:
        """Compute the loss.

        Args:
            outputs: One per network; ``hidden`` is [V * B, L, D].
            batch: The batch they were computed on.
            targets: Teacher correlations by modality (those of ``self.correlation``).

        Returns:
            Total and parts.
        """
        views = batch.targets.flatten(0, 1)  # [V * B, L]
        rec = [self.recommendation(out.hidden, out.item_matrix, views) for out in outputs]
        total = torch.stack(rec).mean()
        parts = {"recommendation": total.detach()}
        for name, loss in self.correlation.items():
            # a table that the networks share is one table
            tables = {id(out.modality[name]): out.modality[name] for out in outputs}
            found = [loss(table, batch.items, targets[name]) for table in tables.values()]
            for part, weight in self.weights.items():
                value = torch.stack([getattr(each, part) for each in found]).mean()
                total = total + weight * value
                parts[f"{part}.{name}"] = value.detach()
        return LossBreakdown(total=total, parts=parts)
