"""The objective of a recipe: its section's options, checked, and the loss built from them.

Which terms there are, and which of them weights of 0 leave out, so that a recipe with weights of
0 computes nothing for them and is the simpler recipe exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mmkd.config.checks import Checks
from mmkd.config.options import show
from mmkd.data.items import AttributeVocabulary
from mmkd.distiller import CorrelationDistiller
from mmkd.losses.attributes import AttributeLoss
from mmkd.losses.compression import CompressionLoss
from mmkd.losses.contrastive import ContrastiveLoss
from mmkd.losses.correlation import CorrelationLoss
from mmkd.losses.mutual import MutualLoss
from mmkd.losses.objective import Objective
from mmkd.losses.recommendation import RecommendationLoss, SoftmaxLoss
from mmkd.losses.supervision import SUPERVISION, Supervision
from mmkd.runs.folder import RunFolder

T = TypeVar("T", bound=nn.Module)


@dataclass(frozen=True)
class ObjectivePlan:
    """The objective's checked options; None leaves a term out.

    Attributes:
        supervision: Next item or masked item.
        correlation: For ``CorrelationLoss``.
        weights: Of the correlation losses, for ``Objective``.
        attributes: For ``AttributeLoss``.
        contrastive: For ``ContrastiveLoss``.
        mutual: For ``MutualLoss``.
        compression: For ``CompressionLoss``.
        teacher: The run to compress.
        exact_reference: For ``Objective`` and the parts that have it.
    """

    supervision: Supervision
    correlation: dict[str, Any] | None
    weights: dict[str, Any]
    attributes: dict[str, Any] | None
    contrastive: dict[str, Any] | None
    mutual: dict[str, Any] | None
    compression: dict[str, Any] | None
    teacher: RunFolder | None
    exact_reference: bool

    @property
    def clean(self) -> bool:
        """Whether a term reads the states of the unmasked sequences."""
        return self.attributes is not None or self.contrastive is not None

    def build(
        self,
        *,
        train_counts: Tensor,
        modalities: Sequence[str],
        members: int,
        width: int,
        vocabulary: AttributeVocabulary | None,
    ) -> Objective:
        """Build the loss with its heads.

        Args:
            train_counts: [I + 1], how often each item trains.
            modalities: That are distilled, where the recipe distils.
            members: N.
            width: D.
            vocabulary: Of the catalogue, where attributes are predicted.
        """
        given = self.correlation
        exact = {"exact_reference": self.exact_reference}
        attributes: AttributeLoss | None = None
        if self.attributes is not None and vocabulary is not None:
            attributes = AttributeLoss(
                width=width,
                count=len(vocabulary.names),
                labels=torch.from_numpy(vocabulary.labels),
                members=members,
                **self.attributes,
                **exact,
            )
        return Objective(
            self.supervision.build_loss(train_counts),
            correlation={name: CorrelationLoss(**given) for name in modalities if given},
            attributes=attributes,
            contrastive=_built(ContrastiveLoss, self.contrastive, exact),
            mutual=_built(MutualLoss, self.mutual, {}),
            compression=_built(CompressionLoss, self.compression, {}),
            views=1 if self.supervision.causal else self.supervision.views,
            **self.weights,
            **exact,
        )


def plan_objective(
    checks: Checks,
    *,
    teacher: CorrelationDistiller | None,
    width: int,
    members: int,
    needs_teacher: bool,
) -> ObjectivePlan | None:
    """Check the objective's section.

    Args:
        checks: Of the recipe; gets the problems.
        teacher: The distiller; None without encoders, or where it is wrong itself.
        width: D; 0 where it is wrong.
        members: N.
        needs_teacher: Whether a missing run to compress is a mistake too.

    Returns:
        The plan, or None where it can't be made.
    """
    section = checks.recipe.objective
    supervision = checks.chosen(section.recommendation, SUPERVISION, "objective.recommendation")
    correlation, weights = _correlation(checks, teacher, width)
    attributes = _term(checks, AttributeLoss, "attributes", ("weight",), _OF_ATTRIBUTES)
    contrastive = _term(checks, ContrastiveLoss, "contrastive", ("intra_weight", "cross_weight"))
    mutual = _term(checks, MutualLoss, "mutual", ("weight",))
    compression, compressed = _compression(checks, needs_teacher=needs_teacher)
    if attributes is not None and checks.recipe.data.items.get("attributes") is None:
        checks.problem(
            "objective.attributes",
            "set, but data.items.attributes names no column; name it, or remove this",
            depends=("data.items",),
        )
    if contrastive is not None and supervision and not supervision.views:
        checks.problem(
            "objective.contrastive",
            "set, but there are no views; give objective.recommendation.views, such as 2",
            depends=("objective.recommendation",),
        )
    if mutual is not None and members < 2:
        checks.problem(
            "objective.mutual",
            "set, but there is one network; set ensemble.members to 2 or more, or remove this",
            depends=("ensemble",),
        )
    for name, term in (("mutual", mutual), ("compression", compression)):
        if term is not None and supervision and supervision.loss != "softmax":
            checks.problem(
                f"objective.{name}",
                f"got a recommendation loss of {supervision.loss}, wanted softmax: whole "
                "predictions are compared",
                depends=("objective.recommendation",),
            )
    if section.exact_reference and supervision and supervision.causal:
        checks.problem(
            "objective.exact_reference",
            "set, but the public code has no next_item; use masked_item, or remove this",
            depends=("objective.recommendation",),
        )
    if supervision is None:
        return None
    return ObjectivePlan(
        supervision=supervision if contrastive is not None else supervision.without_contrast(),
        correlation=correlation,
        weights=weights,
        attributes=attributes,
        contrastive=contrastive,
        mutual=mutual,
        compression=compression,
        teacher=compressed,
        exact_reference=section.exact_reference,
    )


_OF_ATTRIBUTES = {
    "width": 1,
    "count": 1,
    "labels": torch.zeros(3, 1, dtype=torch.int64),
    "members": 1,
}


def _built(kind: type[T], options: Mapping[str, Any] | None, more: Mapping[str, Any]) -> T | None:
    return None if options is None else kind(**options, **more)


def _term(
    checks: Checks,
    kind: type[nn.Module],
    name: str,
    weights: Sequence[str],
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """A term's options; None where it isn't asked for or counts nothing."""
    options = getattr(checks.recipe.objective, name)
    if options is None:
        return None
    key, own = f"objective.{name}", dict(given or {})
    before = len(checks.problems)
    checked = checks.options(kind, options, key, given=(*own, "exact_reference"))
    built = None
    if len(checks.problems) == before:
        built = checks.tried(key, lambda: kind(**checked, **own))
    if built is not None and not any(getattr(built, weight) for weight in weights):
        return None
    return checked


def _compression(
    checks: Checks, *, needs_teacher: bool
) -> tuple[dict[str, Any] | None, RunFolder | None]:
    options = checks.recipe.objective.compression
    if options is None:
        return None, None
    key = "objective.compression"
    rest = {k: v for k, v in options.items() if k != "teacher"}
    before = len(checks.problems)
    checked = checks.options(CompressionLoss, rest, key)
    built = None
    if len(checks.problems) == before:
        built = checks.tried(key, lambda: CompressionLoss(**checked))
    if built is not None and not built.weight and not built.states_weight:
        return None, None
    path = options.get("teacher")
    if not isinstance(path, str):
        checks.problem(f"{key}.teacher", f"got {show(path)}, wanted the folder of a trained run")
        return checked, None
    run = RunFolder(Path(path).expanduser())
    if needs_teacher and not run.finished:
        checks.problem(
            f"{key}.teacher",
            f"{path} holds no finished run; train the ensemble first, and give its folder",
        )
    return checked, run


def _correlation(
    checks: Checks, teacher: CorrelationDistiller | None, width: int
) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    key = "objective.correlation"
    options = checks.recipe.objective.correlation
    if options is None or not checks.recipe.encoders:
        return None, {}
    of_objective = ("holistic_weight", "dissected_weight")
    weights = checks.options(
        Objective,
        {k: v for k, v in options.items() if k in of_objective},
        key,
        given=("recommendation", "correlation"),
    )
    checks.tried(key, lambda: Objective(RecommendationLoss(SoftmaxLoss()), **weights))
    rest = {k: v for k, v in options.items() if k not in of_objective}
    given: dict[str, Any] = {
        "width": width,
        "codes": teacher.codes if teacher else 2,
        "similarity": teacher.similarity if teacher else "cosine",
    }
    before = len(checks.problems)
    checked = checks.options(CorrelationLoss, rest, key, given=tuple(given))
    if len(checks.problems) == before and width >= 1:
        checks.tried(key, lambda: CorrelationLoss(**(checked | given)))
    return checked | given, weights
