"""The objective of a recipe: its sections' options, checked, and the loss built from them.

From ``task`` and ``objective`` to a task and to constructor arguments of the losses. A term whose
weights are 0 is left out, so that such a recipe computes nothing for it and is the simpler recipe
exactly.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.config.checks import Checks
from mmkd.config.options import show, unknown
from mmkd.data.items import AttributeVocabulary
from mmkd.data.tasks import TASKS, MaskedItem, NextItem
from mmkd.distiller import CorrelationDistiller
from mmkd.losses.attributes import AttributeLoss
from mmkd.losses.compression import CompressionLoss
from mmkd.losses.contrastive import ContrastiveLoss
from mmkd.losses.correlation import CorrelationLoss
from mmkd.losses.mutual import MutualLoss
from mmkd.losses.objective import Objective
from mmkd.losses.recommendation import LOSSES
from mmkd.runs.folder import RunFolder

Options = dict[str, Any]


@dataclass(frozen=True)
class ObjectivePlan:
    """The task, and the losses' checked options; None leaves a term out.

    Attributes:
        task: What the networks learn to predict.
        kind: A key of ``LOSSES``.
        recommendation: For that loss.
        correlation: For ``CorrelationLoss.of``.
        attributes: For ``AttributeLoss``.
        contrastive: For ``ContrastiveLoss``.
        mutual: For ``MutualLoss``.
        compression: For ``CompressionLoss``.
        teacher: The run to compress.
    """

    task: NextItem | MaskedItem
    kind: str
    recommendation: Options
    correlation: Options | None
    attributes: Options | None
    contrastive: Options | None
    mutual: Options | None
    compression: Options | None
    teacher: RunFolder | None

    def build(
        self,
        *,
        train_counts: Tensor,
        distiller: CorrelationDistiller | None,
        members: int,
        width: int,
        vocabulary: AttributeVocabulary | None,
    ) -> Objective:
        """Build the loss with its heads.

        Args:
            train_counts: [I + 1], how often each item trains.
            distiller: Fitted, where the recipe distils.
            members: N.
            width: D.
            vocabulary: Of the catalogue, where attributes are predicted.
        """
        attributes = correlation = None
        if self.attributes is not None and vocabulary is not None:
            attributes = AttributeLoss(
                width=width,
                count=len(vocabulary.names),
                labels=torch.from_numpy(vocabulary.labels),
                members=members,
                **self.attributes,
            )
        if self.correlation is not None and distiller is not None:
            correlation = CorrelationLoss.of(distiller, width=width, **self.correlation)
        return Objective(
            LOSSES[self.kind](train_counts=train_counts, **self.recommendation),
            correlation=correlation,
            attributes=attributes,
            contrastive=None if self.contrastive is None else ContrastiveLoss(**self.contrastive),
            mutual=None if self.mutual is None else MutualLoss(**self.mutual),
            compression=None if self.compression is None else CompressionLoss(**self.compression),
        )


def plan_objective(checks: Checks, *, members: int, needs_teacher: bool) -> ObjectivePlan | None:
    """Check the task and the objective's section.

    Args:
        checks: Of the recipe; gets the problems.
        members: N.
        needs_teacher: Whether a missing run to compress is a mistake too.

    Returns:
        The plan, or None where it can't be made.
    """
    recipe, section = checks.recipe, checks.recipe.objective
    task = checks.chosen(recipe.task, TASKS, "task")
    kind, options = section.recommendation.kind, section.recommendation.options
    if kind in LOSSES:
        given = ("train_counts",)
        options = checks.options(LOSSES[kind], options, "objective.recommendation", given=given)
    else:
        checks.problem("objective.recommendation.kind", unknown(kind, LOSSES))
    correlation = None
    if recipe.encoders:  # else it can't be, and the plan says so
        correlation = _term(checks, CorrelationLoss, "correlation", "width", "codes", "similarity")
    attributes = _term(checks, AttributeLoss, "attributes", "width", "count", "labels", "members")
    contrastive = _term(checks, ContrastiveLoss, "contrastive")
    mutual = _term(checks, MutualLoss, "mutual")
    compression = _term(checks, CompressionLoss, "compression", apart="teacher")
    if attributes is not None and recipe.data.items.get("attributes") is None:
        checks.problem(
            "objective.attributes",
            "set, but data.items.attributes names no column; name it, or remove this",
            depends=("data.items",),
        )
    if contrastive is not None and task and not task.views:
        checks.problem(
            "objective.contrastive",
            "set, but there are no views; give task.views, such as 2",
            depends=("task",),
        )
    if mutual is not None and members < 2:
        checks.problem(
            "objective.mutual",
            "set, but there is one network; set ensemble.members to 2 or more, or remove this",
            depends=("ensemble",),
        )
    for name, term in (("mutual", mutual), ("compression", compression)):
        if term is not None and kind in LOSSES and kind != "softmax":
            checks.problem(
                f"objective.{name}",
                f"got a recommendation loss of {kind}, wanted softmax: whole predictions are "
                "compared",
                depends=("objective.recommendation",),
            )
    teacher = None
    if compression is not None:
        teacher = _teacher(checks, needs_teacher=needs_teacher)
    if task is None:
        return None
    return ObjectivePlan(
        task=task if contrastive is not None else task.without_contrast(),
        kind=kind,
        recommendation=options,
        correlation=correlation,
        attributes=attributes,
        contrastive=contrastive,
        mutual=mutual,
        compression=compression,
        teacher=teacher,
    )


def _term(
    checks: Checks, kind: Callable[..., nn.Module], name: str, *given: str, apart: str = ""
) -> Options | None:
    """A term's options but the one that is read ``apart``; None where it counts nothing."""
    options = getattr(checks.recipe.objective, name)
    if options is None:
        return None
    own = {key: value for key, value in options.items() if key != apart}
    checked = checks.options(kind, own, f"objective.{name}", given=given)
    parameters = inspect.signature(kind).parameters.values()
    weights = [checked.get(p.name, p.default) for p in parameters if p.name.endswith("weight")]
    return checked if any(weights) else None


def _teacher(checks: Checks, *, needs_teacher: bool) -> RunFolder | None:
    key = "objective.compression.teacher"
    path = (checks.recipe.objective.compression or {}).get("teacher")
    if not isinstance(path, str):
        checks.problem(key, f"got {show(path)}, wanted the folder of a trained run")
        return None
    run = RunFolder(Path(path).expanduser())
    if needs_teacher and not run.finished:
        checks.problem(
            key, f"{path} holds no finished run; train the ensemble first, and give its folder"
        )
    return run
