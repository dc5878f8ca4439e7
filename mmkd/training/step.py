"""TrainStep: the one module Accelerate prepares, so that it sees every trainable parameter."""

from collections.abc import Mapping

from torch import nn

from mmkd.data.batches import Batch
from mmkd.distiller import CorrelationTargets
from mmkd.objectives.objective import LossBreakdown, Objective
from mmkd.student import Ensemble


class TrainStep(nn.Module):
    """Student and objective as one forward pass.

    Args:
        student: The networks that are kept.
        objective: The loss with its own trainable heads, dropped after training.
    """

    def __init__(self, student: Ensemble, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, batch: Batch, targets: Mapping[str, CorrelationTargets]) -> LossBreakdown:
        """Run all views of the batch through every network as one batch and compute the loss."""
        outputs = self.student(batch.views.flatten(0, 1))
        breakdown: LossBreakdown = self.objective(outputs, batch, targets)
        return breakdown
