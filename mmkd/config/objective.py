"""The objective of a recipe: its section's options, checked, and the loss built from them.

A term whose weights are 0 is left out, so that such a recipe computes nothing for it and is the
simpler recipe exactly.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.config.checks import Checks, filled
from mmkd.config.options import show
from mmkd.data.items import AttributeVocabulary
from mmkd.data.soft_targets import SoftTargets, soft_targets
from mmkd.data.splits import SequenceSplit
from mmkd.distiller import CorrelationDistiller
from mmkd.losses.attributes import AttributeLoss
from mmkd.losses.compression import CompressionLoss
from mmkd.losses.contrastive import ContrastiveLoss
from mmkd.losses.correlation import CorrelationLoss
from mmkd.losses.mutual import MutualLoss
from mmkd.losses.objective import Objective
from mmkd.losses.recommendation import LOSSES, NeighbourLoss
from mmkd.runs.folder import RunFolder

Options = dict[str, Any]


@dataclass(frozen=True)
class ObjectivePlan:
    """The losses' checked options; None leaves a term out.

    Attributes:
        kind: A key of ``LOSSES``.
        recommendation: For that loss.
        correlation: For ``CorrelationLoss.of``.
        attributes: For ``AttributeLoss``.
        contrastive: For ``ContrastiveLoss``.
        mutual: For ``MutualLoss``.
        compression: For ``CompressionLoss``.
        teacher: The run to compress.
        neighbours: For ``soft_targets``.
    """

    kind: str
    recommendation: Options
    correlation: Options | None
    attributes: Options | None
    contrastive: Options | None
    mutual: Options | None
    compression: Options | None
    teacher: RunFolder | None
    neighbours: Options | None

    def soften(
        self,
        distiller: CorrelationDistiller | None,
        split: SequenceSplit,
        *,
        epochs: int,
        seed: int,
        members: Sequence[float] | None = None,
    ) -> SoftTargets | None:
        """Soft targets of a fitted distiller, where the recipe has them; ``members`` as theirs."""
        if self.neighbours is None or distiller is None:
            return None
        found = soft_targets(distiller, split, epochs=epochs, seed=seed, **self.neighbours)
        return replace(found, members=members)

    def build(
        self,
        *,
        train_counts: Tensor,
        soften: SoftTargets | None,
        distiller: CorrelationDistiller | None,
        members: int,
        width: int,
        vocabulary: AttributeVocabulary | None,
        correlation_shares: Sequence[float] | None = None,
    ) -> Objective:
        """Build the loss with its heads.

        Args:
            train_counts: [I + 1], how often each item trains.
            soften: Of ``soften``; an item that gets a share of others' targets is a candidate, for
                it has positives.
            distiller: Fitted, where the recipe distils.
            members: N.
            width: D.
            vocabulary: Of the catalogue, where attributes are predicted.
            correlation_shares: By network, see ``Objective``.
        """
        attributes = correlation = neighbours = None
        if soften is not None:
            train_counts = soften.counts(train_counts)
            if soften.form == "expected":
                neighbours = NeighbourLoss(soften.neighbours)
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
            neighbours=neighbours,
            correlation_shares=correlation_shares,
        )


def plan_objective(
    checks: Checks, *, views: int, members: int, needs_teacher: bool
) -> ObjectivePlan:
    """Check the objective's section.

    Args:
        checks: Of the recipe; gets the problems.
        views: Altered views of a sequence in a batch, V.
        members: N.
        needs_teacher: Whether a missing run to compress is a mistake too.
    """
    recipe, section = checks.recipe, checks.recipe.objective
    kind, key = section.recommendation.kind, "objective.recommendation"
    options = checks.chosen(section.recommendation, LOSSES, key, given={"train_counts": None})
    if recipe.encoders and recipe.student.score_with == "fused":
        # an item that never trains can be scored by its content, so it is no negative
        options = {"candidates": "trained"} | options
    correlation = None
    if recipe.encoders:  # else it can't be, and the plan says so
        correlation = _correlation(checks)
    neighbours = _neighbours(checks)
    attributes = _term(checks, AttributeLoss, "attributes", "width", "count", "labels", "members")
    contrastive = _term(checks, ContrastiveLoss, "contrastive")
    mutual = _term(checks, MutualLoss, "mutual")
    compression = _term(checks, CompressionLoss, "compression", beside="teacher")
    if attributes is not None and recipe.data.items.get("attributes") is None:
        checks.problem(
            "objective.attributes",
            "set, but data.items.attributes names no column; name it, or remove this",
        )
    if contrastive is not None and not views:
        checks.problem(
            "objective.contrastive", "set, but there are no views; give task.views, such as 2"
        )
    if mutual is not None and members < 2:
        checks.problem(
            "objective.mutual",
            "set, but there is one network; set ensemble.members to 2 or more, or remove this",
        )
    for name, term in (("mutual", mutual), ("compression", compression)):
        if term is not None and kind in LOSSES and kind != "softmax":
            checks.problem(
                f"objective.{name}",
                f"got a recommendation loss of {kind}, wanted softmax: whole predictions are "
                "compared",
            )
    return ObjectivePlan(
        kind=kind,
        recommendation=options,
        correlation=correlation,
        attributes=attributes,
        contrastive=contrastive,
        mutual=mutual,
        compression=compression,
        teacher=None if compression is None else _teacher(checks, needs_teacher=needs_teacher),
        neighbours=neighbours,
    )


def _neighbours(checks: Checks) -> Options | None:
    """Options of soft targets; None without any, or without an encoder (the plan says so)."""
    recipe, key = checks.recipe, "objective.neighbours"
    options = recipe.objective.neighbours
    if options is None or not recipe.encoders:
        return None
    given = dict.fromkeys(("distiller", "split", "epochs", "seed"))
    checked = checks.options(soft_targets, options, key, given=given)
    for name in checked.get("modalities") or ():
        if name not in recipe.encoders:
            checks.problem(
                f"{key}.modalities", f"got {name}, wanted some of {', '.join(recipe.encoders)}"
            )
    if checked.get("form") == "expected" and recipe.objective.recommendation.kind != "softmax":
        checks.problem(
            f"{key}.form",
            "got expected, wanted drawn: the closed form is that of a full softmax, and the "
            f"recommendation loss is {recipe.objective.recommendation.kind}",
        )
    full = filled(soft_targets, checked)
    return checked if full["share"] or full["input_share"] else None


def _correlation(checks: Checks) -> Options | None:
    """Options of the correlation losses, of some modalities their own; None where none counts."""
    section, names = checks.recipe.objective.correlation, ("width", "codes", "similarity")
    if section is None:
        return None
    given, key = dict.fromkeys(names), "objective.correlation"
    own = section.get("by_modality") or {}
    shared = {name: value for name, value in section.items() if name != "by_modality"}
    if not isinstance(own, Mapping):
        checks.problem(f"{key}.by_modality", f"got {show(own)}, wanted modalities to options")
        own = {}
    found = checks.options(CorrelationLoss, shared, key, given=given)
    by_modality = {}
    for modality, options in own.items():
        where = f"{key}.by_modality.{modality}"
        if modality not in checks.recipe.encoders or not isinstance(options, Mapping):
            wanted = f"a mapping, for one of {', '.join(checks.recipe.encoders)}"
            checks.problem(where, f"got {show(options)}, wanted {wanted}")
            continue
        by_modality[modality] = checks.options(CorrelationLoss, options, where, given=given)
    counted = [
        weight
        for modality in checks.recipe.encoders
        for name, weight in filled(CorrelationLoss, found | by_modality.get(modality, {})).items()
        if name.endswith("weight")
    ]
    if not any(counted):
        return None
    return found | ({"by_modality": by_modality} if by_modality else {})


def _term(
    checks: Checks, kind: Callable[..., nn.Module], name: str, *given: str, beside: str = ""
) -> Options | None:
    """A term's options without the one ``beside`` them; None where it counts nothing."""
    options = getattr(checks.recipe.objective, name)
    if options is None:
        return None
    own = {key: value for key, value in options.items() if key != beside}
    checked = checks.options(kind, own, f"objective.{name}", given=dict.fromkeys(given))
    weights = [v for k, v in filled(kind, checked).items() if k.endswith("weight")]
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
