"""Plan: a recipe whose every option has been checked, and the parts it asks for, ready to build.

From a ``Recipe`` to constructor arguments. Every mistake of the recipe is reported together,
before any data or model is loaded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from mmkd.data import SPLITS
from mmkd.data.readers import load_interactions, load_items
from mmkd.distiller import CorrelationDistiller
from mmkd.embedding_cache import EmbeddingCache, default_cache_folder
from mmkd.encoders import EncoderCard, EncoderError, load_card
from mmkd.evaluation.metrics import metrics_from_ranks
from mmkd.evaluation.settings import Evaluator
from mmkd.objectives.correlation import CorrelationLoss
from mmkd.objectives.objective import Objective
from mmkd.objectives.supervision import SUPERVISION, Supervision
from mmkd.options import RecipeError, check_options, unknown
from mmkd.recipe import Recipe, Spec
from mmkd.student import FusedItemEmbedding, backbone_class, build_backbone
from mmkd.training.optimizer import ASYNCHRONOUS, AsynchronousUpdate
from mmkd.training.trainer import Trainer

T = TypeVar("T")

DEFAULT_WIDTH = 64


@dataclass(frozen=True)
class Plan:
    """Checked options, by the part that takes them, and the cheap parts already built.

    Attributes:
        recipe: What was planned.
        items: For ``load_items``.
        interactions: For ``load_interactions``.
        split: For the split function of ``recipe.data.split.kind``.
        cards: Encoder card by modality name.
        cache: For ``EmbeddingCache``.
        allow_random_weights: Whether a card may ask for an untrained model.
        distiller: For ``CorrelationDistiller``; None without encoders.
        embedding: For ``FusedItemEmbedding``.
        backbone: For ``build_backbone``.
        correlation: For ``CorrelationLoss``; None without distillation.
        weights: For ``Objective``.
        supervision: Next item or masked item.
        asynchronous: How the modality tables lag behind.
        trainer: The training loop.
        evaluator: How the run is evaluated.
    """

    recipe: Recipe
    items: dict[str, Any]
    interactions: dict[str, Any]
    split: dict[str, Any]
    cards: dict[str, EncoderCard]
    cache: dict[str, Any]
    allow_random_weights: bool
    distiller: dict[str, Any] | None
    embedding: dict[str, Any]
    backbone: dict[str, Any]
    correlation: dict[str, Any] | None
    weights: dict[str, Any]
    supervision: Supervision
    asynchronous: AsynchronousUpdate
    trainer: Trainer
    evaluator: Evaluator

    @property
    def width(self) -> int:
        """D."""
        return int(self.embedding["width"])


def plan(recipe: Recipe, *, needs_data: bool = True) -> Plan:
    """Check a whole recipe.

    Args:
        recipe: The recipe.
        needs_data: Whether a missing data folder is a mistake too.

    Returns:
        The plan.

    Raises:
        RecipeError: With every mistake found.
    """
    return _Planner(recipe).plan(needs_data=needs_data)


class _Planner:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.problems: list[str] = []

    def plan(self, *, needs_data: bool) -> Plan:
        recipe = self.recipe
        if needs_data and not recipe.data.folder.is_dir():
            self._problem("data.root", f"no such folder: {recipe.data.root}")
        seed = recipe.seed
        embedding = self._options(
            FusedItemEmbedding,
            {"width": DEFAULT_WIDTH, **recipe.student.embedding},
            "student.embedding",
            given=("item_count", "modalities", "present"),
        )
        width = int(embedding.get("width", DEFAULT_WIDTH))
        trainer = self._build(Trainer, recipe.training, "training")
        length = trainer.max_length if trainer else 50
        backbone, causal = self._backbone(recipe.student.backbone, width, length)
        cache = {"folder": str(default_cache_folder())} | recipe.cache
        random_weights = cache.pop("allow_random_weights", False)
        if not isinstance(random_weights, bool):
            self._problem("cache.allow_random_weights", "wanted true or false")
        distiller = self._distiller(seed)
        correlation, weights = self._correlation(distiller, width)
        supervision = self._chosen(
            recipe.objective.recommendation, SUPERVISION, "objective.recommendation"
        )
        if supervision and causal is not None and supervision.causal != causal:
            wanted = "masked_item" if not causal else "next_item"
            self._problem(
                "objective.recommendation.kind",
                f"got {recipe.objective.recommendation.kind}, wanted {wanted}: backbone "
                f"{recipe.student.backbone.kind} is {'causal' if causal else 'bidirectional'}",
            )
        if supervision and trainer and not supervision.causal and trainer.max_length < 2:
            self._problem(
                "training.max_length", "got 1, wanted at least 2: one place is the mask token's"
            )
        asynchronous = self._chosen(recipe.asynchronous, ASYNCHRONOUS, "asynchronous")
        evaluator = self._build(Evaluator, recipe.evaluation, "evaluation")
        self._metrics(evaluator, trainer)
        known = SPLITS.get(recipe.data.split.kind)
        if known is None:
            self._problem("data.split.kind", unknown(recipe.data.split.kind, SPLITS))
        split = (
            self._options(
                known, recipe.data.split.options, "data.split", given=("log", "item_count")
            )
            if known
            else {}
        )
        result: dict[str, Any] = dict(
            items=self._options(load_items, recipe.data.items, "data.items", given=("root",)),
            interactions=self._options(
                load_interactions,
                recipe.data.interactions,
                "data.interactions",
                given=("items", "root"),
            ),
            cards=self._cards(),
            cache=self._options(EmbeddingCache, cache, "cache"),
        )
        if self.problems:
            raise RecipeError(self.problems)
        return Plan(
            recipe=recipe,
            split=split,
            allow_random_weights=bool(random_weights),
            distiller=distiller,
            embedding=embedding,
            backbone=backbone,
            correlation=correlation,
            weights=weights,
            supervision=_sure(supervision),
            asynchronous=_sure(asynchronous),
            trainer=_sure(trainer),
            evaluator=_sure(evaluator),
            **result,
        )

    def _problem(self, key: str, message: str) -> None:
        self.problems.append(f"{self.recipe.where(key)}: {message}")

    def _options(
        self,
        target: Callable[..., object],
        options: Mapping[str, object],
        key: str,
        given: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        checked, problems = check_options(
            target, options, where=self.recipe.where(key), given=given
        )
        self.problems += problems
        return checked

    def _build(self, target: Callable[..., T], options: Mapping[str, object], key: str) -> T | None:
        """Build a part that costs nothing; its own refusals are problems of the recipe."""
        before = len(self.problems)
        checked = self._options(target, options, key)
        if len(self.problems) > before:
            return None
        try:
            return target(**checked)
        except ValueError as error:
            self._problem(key, str(error))
            return None

    def _chosen(self, spec: Spec, registry: Mapping[str, Callable[..., T]], key: str) -> T | None:
        if spec.kind not in registry:
            self._problem(f"{key}.kind", unknown(spec.kind, registry))
            return None
        return self._build(registry[spec.kind], spec.options, key)

    def _backbone(
        self, spec: Spec, width: int, max_length: int
    ) -> tuple[dict[str, Any], bool | None]:
        key = "student.backbone"
        try:
            found = backbone_class(spec.kind)
        except ValueError as error:
            self._problem(f"{key}.kind", str(error))
            return {}, None
        before = len(self.problems)
        options = self._options(found, spec.options, key, given=("width", "max_length"))
        causal = bool(getattr(found, "causal", True))
        if len(self.problems) == before:
            try:
                build_backbone(spec.kind, width=width, max_length=max_length, **options)
            except ValueError as error:
                self._problem(key, str(error))
        return {"kind": spec.kind, **options}, causal

    def _distiller(self, seed: int) -> dict[str, Any] | None:
        recipe = self.recipe
        if not recipe.encoders:
            for key, value in (
                ("distiller", recipe.distiller),
                ("objective.correlation", recipe.objective.correlation),
            ):
                if value is not None:
                    self._problem(
                        key, "set, but there is no encoder to distil; add one to encoders"
                    )
            return None
        before = len(self.problems)
        options = self._options(
            CorrelationDistiller, recipe.distiller or {}, "distiller", given=("seed",)
        )
        options["seed"] = seed
        if len(self.problems) == before:
            try:
                CorrelationDistiller(**options)
            except ValueError as error:
                self._problem("distiller", str(error))
        return options

    def _correlation(
        self, distiller: dict[str, Any] | None, width: int
    ) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        options = self.recipe.objective.correlation
        if options is None or distiller is None:
            return None, {}
        of_objective = ("holistic_weight", "dissected_weight")
        weights = self._options(
            Objective,
            {k: v for k, v in options.items() if k in of_objective},
            "objective.correlation",
            given=("recommendation", "correlation"),
        )
        rest = {k: v for k, v in options.items() if k not in of_objective}
        teacher = CorrelationDistiller(**distiller) if not self.problems else None
        given: dict[str, Any] = {
            "width": width,
            "codes": teacher.codes if teacher else 2,
            "similarity": teacher.similarity if teacher else "cosine",
        }
        before = len(self.problems)
        checked = self._options(CorrelationLoss, rest, "objective.correlation", given=tuple(given))
        if len(self.problems) == before:
            try:
                CorrelationLoss(**(checked | given))
            except ValueError as error:
                self._problem("objective.correlation", str(error))
        return checked | given, weights

    def _metrics(self, evaluator: Evaluator | None, trainer: Trainer | None) -> None:
        if evaluator is None:
            return
        try:
            names = metrics_from_ranks([1.0], evaluator.ks)  # refuses impossible cut-offs
        except ValueError as error:
            self._problem("evaluation.ks", str(error))
            return
        retention = tuple(f"retention.{name}." for name in self.recipe.encoders)
        if trainer and trainer.select_metric not in names:
            if not trainer.select_metric.startswith(retention):
                wanted = ", ".join([*names, *(f"{prefix}..." for prefix in retention)])
                self._problem(
                    "training.select_metric", f"got {trainer.select_metric}, wanted one of {wanted}"
                )

    def _cards(self) -> dict[str, EncoderCard]:
        cards: dict[str, EncoderCard] = {}
        for name, card in self.recipe.encoders.items():
            try:
                cards[name] = load_card(card)
            except EncoderError as error:
                self._problem(f"encoders.{name}", str(error))
        return cards


def _sure(part: T | None) -> T:
    if part is None:  # every None has left a problem behind, and problems were raised
        raise RuntimeError("a part of the plan is missing although no problem was found")
    return part
