"""Plan: a recipe whose every option has been checked, and the parts it asks for, ready to build.

From a ``Recipe`` to constructor arguments. Every mistake of the recipe is reported together,
before any data or model is loaded.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mmkd.config.checks import Checks
from mmkd.config.objective import ObjectivePlan, plan_objective
from mmkd.config.options import unknown
from mmkd.config.recipe import Recipe, Spec, read_draft
from mmkd.data import SPLITS
from mmkd.data.readers import load_interactions, load_items
from mmkd.data.text_template import TextTemplate
from mmkd.distiller import CorrelationDistiller
from mmkd.embeddings import EmbeddingCache, EncodingSettings, default_cache_folder
from mmkd.encoders import EncoderCard, load_card
from mmkd.errors import EncoderError, RecipeError
from mmkd.evaluation import Evaluator, Retention
from mmkd.evaluation.metrics import metric_names
from mmkd.student import (
    FusedItemEmbedding,
    Recommender,
    backbone_class,
    build_backbone,
    build_ensemble,
)
from mmkd.student.layers import check_modality_name
from mmkd.training.arguments import TrainingArguments
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
        encoding: How encoders are run.
        allow_random_weights: Whether a card may ask for an untrained model.
        distiller: For ``CorrelationDistiller``; None without encoders.
        embedding: For ``FusedItemEmbedding``.
        backbone: For ``build_backbone``.
        ensemble: For ``build_ensemble``.
        objective: The terms of the loss.
        asynchronous: How the modality tables lag behind.
        training: Epochs, learning rate and the like.
        evaluator: How the run is evaluated.
    """

    recipe: Recipe
    items: dict[str, Any]
    interactions: dict[str, Any]
    split: dict[str, Any]
    cards: dict[str, EncoderCard]
    cache: dict[str, Any]
    encoding: EncodingSettings
    allow_random_weights: bool
    distiller: dict[str, Any] | None
    embedding: dict[str, Any]
    backbone: dict[str, Any]
    ensemble: dict[str, Any]
    objective: ObjectivePlan
    asynchronous: AsynchronousUpdate
    training: TrainingArguments
    evaluator: Evaluator

    @property
    def width(self) -> int:
        """D."""
        return int(self.embedding["width"])

    @property
    def trainer(self) -> Trainer:
        """The training loop."""
        return Trainer(self.training)


def plan(recipe: Recipe, *, needs_data: bool = True, needs_teacher: bool = True) -> Plan:
    """Check a whole recipe.

    Args:
        recipe: The recipe.
        needs_data: Whether a missing data folder is a mistake too.
        needs_teacher: Whether a missing run to compress is one; a trained student needs it no more.

    Returns:
        The plan.

    Raises:
        RecipeError: With every mistake found.
    """
    return _Planner(recipe).plan(needs_data=needs_data, needs_teacher=needs_teacher)


def check(name_or_path: str, overrides: Sequence[str] = (), *, needs_data: bool = True) -> Plan:
    """Read and plan a recipe; mistakes of its structure and of its options come together.

    Args:
        name_or_path: As for ``load_recipe``.
        overrides: As for ``load_recipe``.
        needs_data: As for ``plan``.

    Returns:
        The plan.

    Raises:
        RecipeError: With every mistake found.
    """
    draft = read_draft(name_or_path, overrides)
    try:
        planned = _Planner(draft.recipe, draft.broken).plan(
            needs_data=needs_data, needs_teacher=needs_data
        )
    except RecipeError as error:
        raise RecipeError([*draft.problems, *error.problems]) from None
    if draft.problems:
        raise RecipeError(draft.problems)
    return planned


class _Planner:
    """Plans a recipe; says nothing about keys that are known to be ``broken``."""

    def __init__(self, recipe: Recipe, broken: Collection[str] = ()) -> None:
        self.recipe = recipe
        self.checks = Checks(recipe, broken)

    def plan(self, *, needs_data: bool, needs_teacher: bool) -> Plan:
        recipe = self.recipe
        if needs_data and not recipe.data.folder.is_dir():
            self.checks.problem("data.root", f"no such folder: {recipe.data.root}")
        seed = recipe.seed
        embedding = self.checks.options(
            FusedItemEmbedding,
            {"width": DEFAULT_WIDTH, **recipe.student.embedding},
            "student.embedding",
            given=("item_count", "modalities", "present"),
        )
        self._embedding(embedding)
        width = embedding.get("width", 0)  # 0 where it is wrong: what depends on it isn't built
        training = self.checks.build(TrainingArguments, recipe.training, "training")
        encoding = self.checks.build(EncodingSettings, recipe.embed, "embed")
        length = training.max_length if training else 50
        backbone, causal = self._backbone(recipe.student.backbone, width, length)
        cache = {"folder": str(default_cache_folder())} | recipe.cache
        random_weights = cache.pop("allow_random_weights", False)
        if not isinstance(random_weights, bool):
            self.checks.problem("cache.allow_random_weights", "wanted true or false")
        distiller = self._distiller(seed)
        ensemble = self._ensemble()
        objective = plan_objective(
            self.checks,
            members=ensemble.get("members", 1),
            needs_teacher=needs_teacher,
        )
        task = objective.task if objective else None
        if task and causal is not None and task.causal != causal:
            wanted = "masked_item" if not causal else "next_item"
            self.checks.problem(
                "task.kind",
                f"got {recipe.task.kind}, wanted {wanted}: backbone "
                f"{recipe.student.backbone.kind} is {'causal' if causal else 'bidirectional'}",
                depends=("student.backbone",),
            )
        if task and training and not task.causal and training.max_length < 2:
            self.checks.problem(
                "training.max_length",
                "got 1, wanted at least 2: one place is the mask token's",
                depends=("task",),
            )
        asynchronous = self.checks.chosen(recipe.asynchronous, ASYNCHRONOUS, "asynchronous")
        evaluator = self.checks.build(Evaluator, recipe.evaluation, "evaluation")
        self._metrics(evaluator, training)
        known = SPLITS.get(recipe.data.split.kind)
        if known is None:
            self.checks.problem("data.split.kind", unknown(recipe.data.split.kind, SPLITS))
        split = (
            self.checks.options(
                known, recipe.data.split.options, "data.split", given=("log", "item_count")
            )
            if known
            else {}
        )
        result: dict[str, Any] = dict(
            items=self._items(),
            interactions=self._interactions(),
            ensemble=ensemble,
            cards=self._cards(random_weights=bool(random_weights)),
            cache=self.checks.options(EmbeddingCache, cache, "cache"),
        )
        if "folder" in result["cache"]:
            self.checks.tried("cache", lambda: EmbeddingCache(**result["cache"]))
        if self.checks.problems:
            raise RecipeError(self.checks.audible())
        return Plan(
            recipe=recipe,
            split=split,
            allow_random_weights=bool(random_weights),
            distiller=distiller,
            embedding=embedding,
            backbone=backbone,
            objective=_sure(objective),
            asynchronous=_sure(asynchronous),
            training=_sure(training),
            evaluator=_sure(evaluator),
            encoding=_sure(encoding),
            **result,
        )

    def _embedding(self, options: Mapping[str, Any]) -> None:
        for name in self.recipe.encoders:
            for problem in check_modality_name(name):
                self.checks.problem(f"encoders.{name}", problem)
        for problem in FusedItemEmbedding.check(**options):
            self.checks.problem("student.embedding", problem)

    def _ensemble(self) -> dict[str, Any]:
        key = "ensemble"
        options = self.checks.options(
            build_ensemble, self.recipe.ensemble, key, given=("build", "seed")
        )

        def build() -> Recommender:
            return Recommender(
                embedding=FusedItemEmbedding(item_count=1, width=1),
                backbone=build_backbone("gru4rec", width=1, max_length=1),
            )

        # one member says as much as many: what else is refused doesn't depend on their number
        members = min(1, options.get("members", 1))
        self.checks.tried(key, lambda: build_ensemble(build, **(options | {"members": members})))
        return options

    def _items(self) -> dict[str, Any]:
        key = "data.items"
        options = self.checks.options(load_items, self.recipe.data.items, key, given=("root",))
        if options.get("text") is not None:
            self.checks.tried(f"{key}.text", lambda: TextTemplate.parse(options["text"]))
        return options

    def _interactions(self) -> dict[str, Any]:
        key = "data.interactions"
        given = self.recipe.data.interactions
        options = self.checks.options(load_interactions, given, key, given=("items", "root"))
        if options.get("min_rating") is not None and given.get("rating") is None:
            self.checks.problem(f"{key}.min_rating", "needs ratings; name their column with rating")
        return options

    def _backbone(
        self, spec: Spec, width: int, max_length: int
    ) -> tuple[dict[str, Any], bool | None]:
        key = "student.backbone"
        try:
            found = backbone_class(spec.kind)
        except ValueError as error:
            self.checks.problem(f"{key}.kind", str(error))
            return {}, None
        before = len(self.checks.problems)
        options = self.checks.options(found, spec.options, key, given=("width", "max_length"))
        causal = bool(getattr(found, "causal", True))
        if len(self.checks.problems) == before and width >= 1:
            self.checks.tried(
                key,
                lambda: build_backbone(spec.kind, width=width, max_length=max_length, **options),
            )
        return {"kind": spec.kind, **options}, causal

    def _distiller(self, seed: int) -> dict[str, Any] | None:
        """The distiller's options; None without an encoder."""
        recipe = self.recipe
        if not recipe.encoders:
            for key, value in (
                ("distiller", recipe.distiller),
                ("objective.correlation", recipe.objective.correlation),
            ):
                if value is not None:
                    self.checks.problem(
                        key,
                        "set, but there is no encoder to distil; add one to encoders",
                        depends=("encoders",),
                    )
            return None
        before = len(self.checks.problems)
        options = self.checks.options(
            CorrelationDistiller, recipe.distiller or {}, "distiller", given=("seed",)
        )
        options["seed"] = seed
        if len(self.checks.problems) == before:
            self.checks.tried("distiller", lambda: CorrelationDistiller(**options))
        return options

    def _metrics(self, evaluator: Evaluator | None, training: TrainingArguments | None) -> None:
        if evaluator is None:
            return
        names = [*metric_names(evaluator.ks), *Retention.names(self.recipe.encoders)]
        if training and training.select_metric not in names:
            self.checks.problem(
                "training.select_metric",
                f"got {training.select_metric}, wanted one of {', '.join(names)}",
                depends=("encoders", "evaluation.ks"),
            )

    def _cards(self, *, random_weights: bool) -> dict[str, EncoderCard]:
        cards: dict[str, EncoderCard] = {}
        for name, card in self.recipe.encoders.items():
            try:
                cards[name] = load_card(card)
                untrained = cards[name].untrained
            except EncoderError as error:
                self.checks.problem(f"encoders.{name}", str(error))
                continue
            # here and not only where it is built: the cache may hold an earlier run's vectors
            if untrained and not random_weights:
                self.checks.problem(
                    f"encoders.{name}",
                    f"card {card} asks for an untrained model, whose vectors mean nothing; name "
                    "pretrained weights in the card, or for a test set "
                    "cache.allow_random_weights: true",
                )
        return cards


def _sure(part: T | None) -> T:
    if part is None:  # every None has left a problem behind, and problems were raised
        raise RuntimeError("a part of the plan is missing although no problem was found")
    return part
