"""Plan: a recipe whose every option has been checked, ready to be built from.

From a ``Recipe`` to constructor arguments. Every mistake of the options is reported together,
before any data or model is loaded; nothing is built to see whether it is refused.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmkd.config.checks import Checks, filled
from mmkd.config.members import MembersPlan, plan_members
from mmkd.config.objective import ObjectivePlan, plan_objective
from mmkd.config.recipe import Recipe
from mmkd.data import SPLITS
from mmkd.data.dataset import Dataset
from mmkd.data.inspection import Inspection, inspect_data
from mmkd.data.readers import load_interactions, load_items
from mmkd.data.tasks import TASKS, MaskedItem, NextItem
from mmkd.distiller import CorrelationDistiller
from mmkd.embeddings import EmbeddingCache, EncodingSettings, default_cache_folder
from mmkd.encoders import EncoderCard, load_card
from mmkd.errors import EncoderError, RecipeError, refuse
from mmkd.evaluation import Evaluator
from mmkd.evaluation.metrics import CUTOFFS, metric_names
from mmkd.losses.recommendation import LOSSES
from mmkd.student import FusedItemEmbedding, StudentSpec, backbone_class, build_ensemble
from mmkd.student.layers import check_modality_name
from mmkd.training.arguments import TrainingArguments
from mmkd.training.optimizer import ASYNCHRONOUS, AsynchronousUpdate
from mmkd.tuning.arguments import TuningArguments

DEFAULT_WIDTH = 64


@dataclass(frozen=True)
class Plan:
    """Checked options, by the part that takes them, and the parts that are options themselves.

    Attributes:
        recipe: What was planned.
        items: For ``load_items``.
        interactions: For ``load_interactions``.
        split: For the split function of ``recipe.data.split.kind``.
        cards: Encoder card by modality name.
        cache: For ``EmbeddingCache``.
        tuning: How encoders are tuned, by the recipe's keys; see `tuning_of`.
        encoding: How encoders are run.
        allow_random_weights: Whether a card may ask for an untrained model.
        distiller: For ``CorrelationDistiller``; None without encoders.
        embedding: For ``FusedItemEmbedding``.
        backbone: For ``build_backbone``.
        members: The networks' options; what ``build_ensemble`` takes among them.
        task: What the networks are asked.
        objective: The terms of the loss.
        asynchronous: How the modality tables lag behind, of all members or one a member.
        training: How it is trained.
        evaluator: How it is evaluated.
        tests: Whether a training ends with the test; one that only selects reads no test case.
        baselines: Whether the cheap baselines are evaluated beside it.
        data: The data, where it was read already.
    """

    recipe: Recipe
    items: dict[str, Any]
    interactions: dict[str, Any]
    split: dict[str, Any]
    cards: dict[str, EncoderCard]
    cache: dict[str, Any]
    tuning: dict[str, TuningArguments]
    encoding: EncodingSettings
    allow_random_weights: bool
    distiller: dict[str, Any] | None
    embedding: dict[str, Any]
    backbone: dict[str, Any]
    members: MembersPlan
    task: NextItem | MaskedItem
    objective: ObjectivePlan
    asynchronous: AsynchronousUpdate | list[AsynchronousUpdate]
    training: TrainingArguments
    evaluator: Evaluator
    tests: bool
    baselines: bool
    data: Dataset | None = None

    @property
    def width(self) -> int:
        """D."""
        return int(self.embedding["width"])

    def tuning_of(self, encoders: Sequence[str]) -> TuningArguments:
        """How some encoders are tuned together; as the recipe says, or else by the defaults."""
        for key, arguments in self.tuning.items():
            if sorted(key.split("+")) == sorted(encoders):
                return arguments
        return TuningArguments(threads=self.training.threads, cpu=self.training.cpu)

    def load_data(self) -> Dataset:
        """Read catalogue and log, unless that is done, and split the sequences.

        Raises:
            EncoderError: An encoder was tuned on another log, or another split of it.
        """
        data = self.data
        if data is None:
            data = Dataset.load(
                self.recipe.data.folder,
                items=self.items,
                interactions=self.interactions,
                split={"kind": self.recipe.data.split.kind, **self.split},
            )
        self._check_tuned(data)
        return data

    def _check_tuned(self, data: Dataset) -> None:
        tuned = {name: card.tuned for name, card in self.cards.items() if card.tuned is not None}
        digests = data.digests() if tuned else {}
        for name, on in tuned.items():
            changed = [part for part in ("events", "split") if getattr(on, part) != digests[part]]
            if changed:
                where, card = self.recipe.where(f"encoders.{name}"), self.cards[name].name
                raise EncoderError(
                    f"{where}: {card} was tuned on another {' and '.join(changed)}, so it may have "
                    "read events that this recipe validates or tests on; tune "
                    f"{on.parent} on this one (mmkd tune)"
                )

    def inspect_data(self) -> Inspection:
        """Read catalogue and log, and tell what is wrong with them or what would train.

        Raises:
            RecipeError: With every problem that was found.
        """
        found = inspect_data(
            self.recipe.data.folder,
            items=self.items,
            interactions=self.interactions,
            split={"kind": self.recipe.data.split.kind, **self.split},
        )
        problems = [f"{self.recipe.where(f'data.{at}')}: {line}" for at, line in found.problems]
        for name, card in self.cards.items():
            if card.reads == "content" and self.items.get(card.modality) is None:
                problems.append(
                    f"{self.recipe.where(f'encoders.{name}')}: reads {card.modality}s, but "
                    f"data.items.{card.modality} is not set; set it, or encoders.{name}: null"
                )
        if problems:
            raise RecipeError(problems)
        return found


def plan(
    recipe: Recipe,
    *,
    needs_data: bool = True,
    needs_teacher: bool = True,
    needs_encoders: bool = True,
    cards: Mapping[str, EncoderCard] | None = None,
    data: Dataset | None = None,
) -> Plan:
    """Check all options of a recipe.

        >>> import mmkd
        >>> recipe = mmkd.load_recipe("quickstart", ["data.root=.", "training.batch_size=64"])
        >>> planned = mmkd.plan(recipe)
        >>> planned.training.batch_size, planned.cards["text"].kind
        (64, 'hashed_text')

    Args:
        recipe: The recipe.
        needs_data: Whether a missing data folder is a mistake too.
        needs_teacher: Whether a missing run to compress is one; a trained student needs it no more.
        needs_encoders: Whether a card that isn't here is one; without, the plan has no cards.
        cards: By modality those that are no files, such as cards of objects.
        data: The recipe's data, where it was read already.

    Returns:
        The plan.

    Raises:
        RecipeError: With every mistake found.
    """
    checks = Checks(recipe)
    if needs_data and not recipe.data.folder.is_dir():
        checks.problem("data.root", f"no such folder: {recipe.data.root}")
    items, interactions, split = _data(checks)
    cache, random_weights = _cache(checks)
    found: dict[str, EncoderCard] = {}
    if needs_encoders:
        found = _cards(checks, cards or {}, random_weights=random_weights)
    encoding = checks.options(EncodingSettings, recipe.embed, "embed")
    distiller = _distiller(checks)
    training = checks.options(TrainingArguments, recipe.training, "training")
    embedding, backbone, sizes = _student(checks, max_length=training.get("max_length"))
    members = plan_members(checks, embedding=embedding, sizes=sizes)
    task = _task(checks, training)
    objective = plan_objective(
        checks,
        views=filled(TASKS[recipe.task.kind], task)["views"] if recipe.task.kind in TASKS else 1,
        members=members.count,
        needs_teacher=needs_teacher,
    )
    asynchronous = checks.chosen(recipe.asynchronous, ASYNCHRONOUS, "asynchronous")
    tuning = _tuning(checks, training)
    evaluation, tests, baselines = _evaluation(checks)
    _select_metric(checks, training, evaluation, members)
    _tables(checks, training, members)
    if checks.problems:
        raise RecipeError(checks.problems)
    refuse(
        StudentSpec(
            item_count=1,  # how many there are is known once the data is read
            max_length=filled(TrainingArguments, training)["max_length"],
            embedding=embedding,
            backbone=backbone,
            score_with=recipe.student.score_with,
            ensemble=members.ensemble,
            modalities=dict.fromkeys(recipe.encoders, 1),
        ).check_fits(),
        RecipeError,
    )
    asked = TASKS[recipe.task.kind](**task)
    return Plan(
        recipe=recipe,
        items=items,
        interactions=interactions,
        split=split,
        cards=found,
        cache=cache,
        tuning={name: TuningArguments(**options) for name, options in tuning.items()},
        encoding=EncodingSettings(**encoding),
        allow_random_weights=random_weights,
        distiller=distiller,
        embedding=embedding,
        backbone=backbone,
        members=members,
        task=asked if objective.contrastive is not None else asked.without_contrast(),
        objective=objective,
        asynchronous=members.asynchronous(ASYNCHRONOUS[recipe.asynchronous.kind](**asynchronous)),
        training=TrainingArguments(**training),
        evaluator=Evaluator(**evaluation),
        tests=tests,
        baselines=tests and baselines,
        data=data,
    )


def option_keys() -> list[str]:
    """Dotted keys that a recipe may hold, those of ``training`` first.

    Of parts that a ``kind`` chooses, only the kind: their options are of that kind alone.

    >>> from mmkd.config.plan import option_keys
    >>> "training.lr" in option_keys(), "data.items.path" in option_keys()
    (True, True)
    """
    sections: dict[str, Callable[..., Any]] = {
        "training": TrainingArguments,
        "evaluation": Evaluator,
        "distiller": CorrelationDistiller,
        "embed": EncodingSettings,
        "cache": EmbeddingCache,
        "ensemble": build_ensemble,
        "student.embedding": FusedItemEmbedding,
        "data.items": load_items,
        "data.interactions": load_interactions,
    }
    given = {"build", "seed", "item_count", "modalities", "present", "trained", "shards"}
    given |= {"items", "root"}
    return [
        *(
            f"{section}.{name}"
            for section, target in sections.items()
            for name in inspect.signature(target).parameters
            if name not in given
        ),
        *("name", "seed", "data.root", "data.split", "encoders.text", "encoders.image", "task"),
        *("student.backbone", "student.score_with", "objective.recommendation", "asynchronous"),
    ]


Options = dict[str, Any]


def _data(checks: Checks) -> tuple[Options, Options, Options]:
    data = checks.recipe.data
    log = {"items": None, "root": None}
    return (
        checks.options(load_items, data.items, "data.items", given={"root": None}),
        checks.options(load_interactions, data.interactions, "data.interactions", given=log),
        checks.chosen(data.split, SPLITS, "data.split", given={"log": None, "item_count": None}),
    )


def _cache(checks: Checks) -> tuple[Options, bool]:
    """Options of the cache, and whether a card may ask for an untrained model."""
    given = {"folder": str(default_cache_folder())} | checks.recipe.cache
    random_weights = given.pop("allow_random_weights", False)
    if not isinstance(random_weights, bool):
        checks.problem("cache.allow_random_weights", "wanted true or false")
    return checks.options(EmbeddingCache, given, "cache"), bool(random_weights)


def _cards(
    checks: Checks, given: Mapping[str, EncoderCard], *, random_weights: bool
) -> dict[str, EncoderCard]:
    cards: dict[str, EncoderCard] = {}
    for name, card in checks.recipe.encoders.items():
        for problem in check_modality_name(name):
            checks.problem(f"encoders.{name}", problem)
        try:
            own = given.get(name)
            if own is None or own.name != card:  # an override may have named another
                own = load_card(card, tower=name)
            cards[name] = own
            untrained = cards[name].untrained
            cards[name].check_trust()
        except EncoderError as error:
            checks.problem(f"encoders.{name}", str(error))
            continue
        # here and not only where it is built: the cache may hold an earlier run's vectors
        if untrained and not random_weights:
            checks.problem(
                f"encoders.{name}",
                f"card {card} asks for an untrained model, whose vectors mean nothing; name "
                "pretrained weights in the card, or for a test set "
                "cache.allow_random_weights: true",
            )
    return cards


def _tuning(checks: Checks, training: Options) -> dict[str, Options]:
    """Options of tuning, by the recipe's keys: one modality, or several that learn together."""
    recipe = checks.recipe
    shared: Options = {name: training[name] for name in ("threads", "cpu") if name in training}
    found: dict[str, Options] = {}
    for key, options in recipe.tune.items():
        for name in key.split("+"):
            if name not in recipe.encoders:
                known = ", ".join(recipe.encoders) or "none"
                checks.problem(f"tune.{key}", f"no such encoder; encoders has {known}")
            elif recipe.tuned.count(name) > 1:
                checks.problem(f"tune.{key}", f"{name} is tuned twice; leave one out")
        found[key] = shared | checks.options(TuningArguments, options, f"tune.{key}")
    return found


def _distiller(checks: Checks) -> Options | None:
    """The distiller's options; None without an encoder."""
    recipe = checks.recipe
    if recipe.encoders:
        given = {"seed": recipe.seed}
        options = checks.options(
            CorrelationDistiller, recipe.distiller or {}, "distiller", given=given
        )
        return options | given
    for key, value in (
        ("distiller", recipe.distiller),
        ("objective.correlation", recipe.objective.correlation),
        ("objective.neighbours", recipe.objective.neighbours),
    ):
        if value is not None:
            checks.problem(key, "set, but there is no encoder to distil; add one to encoders")
    return None


def _student(
    checks: Checks, *, max_length: int | None
) -> tuple[Options, Options, dict[str, int | None]]:
    """Options of the item embedding and of the backbone, its kind among them, and its sizes."""
    student = checks.recipe.student
    embedding = {"width": DEFAULT_WIDTH} | checks.options(
        FusedItemEmbedding,
        {"width": DEFAULT_WIDTH} | student.embedding,
        "student.embedding",
        given=dict.fromkeys(("item_count", "modalities", "present", "trained", "shards")),
    )
    spec, key = student.backbone, "student.backbone"
    known = {"width": embedding["width"], "max_length": max_length}
    sizes = {name: size if size and size >= 1 else None for name, size in known.items()}
    try:
        kind = backbone_class(spec.kind)
    except ValueError as error:
        checks.problem(f"{key}.kind", str(error))
        return embedding, {}, sizes
    backbone = {"kind": spec.kind} | checks.options(kind, spec.options, key, given=sizes)
    return embedding, backbone, sizes


def _task(checks: Checks, training: Options) -> Options:
    """The task's options; it must be one that the backbone can learn from."""
    recipe = checks.recipe
    options = checks.chosen(recipe.task, TASKS, "task")
    try:
        causal = bool(getattr(backbone_class(recipe.student.backbone.kind), "causal", True))
    except ValueError:  # told already
        return options
    if recipe.task.kind not in TASKS:
        return options
    if TASKS[recipe.task.kind].causal != causal:
        checks.problem(
            "task.kind",
            f"got {recipe.task.kind}, wanted {'next_item' if causal else 'masked_item'}: backbone "
            f"{recipe.student.backbone.kind} is {'causal' if causal else 'bidirectional'}",
        )
    elif not causal and training.get("max_length") == 1:
        checks.problem(
            "training.max_length", "got 1, wanted at least 2: one place is the mask token's"
        )
    return options


def _evaluation(checks: Checks) -> tuple[Options, bool, bool]:
    """Options of the evaluator, whether the test is read, and whether baselines are."""
    given = dict(checks.recipe.evaluation)
    tests, baselines = (given.pop(name, True) for name in ("test", "baselines"))
    for name, value in (("test", tests), ("baselines", baselines)):
        if not isinstance(value, bool):
            checks.problem(f"evaluation.{name}", f"got {value!r}, wanted true or false")
    return checks.options(Evaluator, given, "evaluation"), bool(tests), bool(baselines)


def _select_metric(
    checks: Checks, training: Options, evaluation: Options, members: MembersPlan
) -> None:
    """The metric that selects must be one that a validation gives, and that sees what is chosen."""
    ks = evaluation.get("ks", CUTOFFS)
    if Evaluator.check(ks=ks):  # told already
        return
    figures = ("spearman", "recall@10")
    names = [
        *metric_names(ks),
        *(f"retention.{name}.{part}" for name in checks.recipe.encoders for part in figures),
    ]
    got = training.get("select_metric")
    if got is not None and got not in names:
        checks.problem("training.select_metric", f"got {got}, wanted one of {', '.join(names)}")
    elif got is not None and got not in metric_names(ks):
        for name in ("weights", "untrained_offset"):
            if members.ensemble.get(name) == "validation":
                checks.problem(
                    f"ensemble.{name}",
                    f"got validation, but training.select_metric is {got}, which it can't change; "
                    "select by ranks, such as NDCG@10, or give numbers",
                )


def _tables(checks: Checks, training: Options, members: MembersPlan) -> None:
    """Rows step alone where the loss reads some items only; cut ones are never put together."""
    wanted, kind = training.get("tables"), checks.recipe.objective.recommendation.kind
    sampled = [name for name, loss in LOSSES.items() if hasattr(loss, "draw")]
    if wanted in ("rows", "sharded") and kind in LOSSES and kind not in sampled:
        checks.problem(
            "training.tables",
            f"got {wanted}, but the recommendation loss is {kind}, which reads every item; give "
            f"objective.recommendation one of {', '.join(sampled)}, or leave this out",
        )
    if wanted != "sharded":
        return
    kinds = {checks.recipe.asynchronous.kind, *(one[0] for one in members.updates if one)}
    if "interval" in kinds:
        checks.problem(
            "asynchronous",
            "got interval, but training.tables is sharded, where gradients of rows are not "
            "collected; use ramp, frozen or none, or set training.tables to rows",
        )
