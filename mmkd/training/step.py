"""TrainStep: the one module Accelerate prepares, so that it sees every trainable parameter."""

from collections.abc import Mapping

import torch
from torch import nn

from mmkd.data.tasks import Batch
from mmkd.distiller import CorrelationTargets
from mmkd.losses.objective import LossBreakdown, Objective, TeacherOutputs
from mmkd.student import Ensemble


class TrainStep(nn.Module):
    """Student and objective as one forward pass.

    Args:
        student: The networks that are kept.
        objective: The loss with its own trainable heads, dropped after training.
        teacher: A trained ensemble that the student is held to, in evaluation mode and on the
            device; no part of the module, so that no checkpoint holds it.
    """

    def __init__(
        self, student: Ensemble, objective: Objective, teacher: Ensemble | None = None
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self._teacher = (teacher,)  # in a tuple torch does not see it
        shares = objective.correlation_shares or [1.0] * len(student.members)
        counted = {
            modality
            for share, member in zip(shares, student.networks, strict=True)
            for modality in member.embedding.tables
            if share
        }
        for modality, loss in objective.correlation.items():
            if modality not in counted:  # no gradient ever reaches its heads: DDP would wait for it
                loss.requires_grad_(False)

    def forward(self, batch: Batch, targets: Mapping[str, CorrelationTargets]) -> LossBreakdown:
        """Run all views of the batch through every network as one batch and compute the loss."""
        views = batch.views.flatten(0, 1)
        outputs = self.student(views)
        (teacher,) = self._teacher
        teacher_outputs = None
        if teacher is not None:
            with torch.no_grad():
                teacher_outputs = TeacherOutputs(
                    teacher(views), teacher.inference, teacher.weights, teacher.known()
                )
        breakdown: LossBreakdown = self.objective(outputs, batch, targets, teacher_outputs)
        return breakdown
