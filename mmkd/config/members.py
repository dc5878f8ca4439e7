"""Members that differ: the list of ``ensemble.members`` to how each network is built and trained.

Every entry says by what a network differs from the recipe's student; ``{}`` is the student itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmkd.config.checks import Checks
from mmkd.config.merging import merge
from mmkd.config.recipe import Spec
from mmkd.errors import at_least, within
from mmkd.student import FusedItemEmbedding, backbone_class, build_ensemble
from mmkd.training.optimizer import ASYNCHRONOUS, AsynchronousUpdate

Options = dict[str, Any]

# the same for all members: states and scores are compared, and a new item is placed in one way
_COMMON = ("width", "modality_std")


@dataclass(frozen=True, kw_only=True)
class MemberOptions:
    """What a recipe may say of one network.

    Attributes:
        ids: Whether it has an id table.
        modalities: Those of the recipe's encoders that it reads; an empty list is ids only.
        embedding: Options of the item embedding that it has otherwise.
        backbone: Over the student's, kind and options; another kind starts from its own defaults.
        asynchronous: Of its modality tables.
        correlation: What the correlation losses of its tables count, beside their weights.
        neighbours: What the share of soft targets is multiplied by.
        seed: Of its first weights; None = the recipe's plus its place in the list.
    """

    ids: bool | None = None
    modalities: Sequence[str] | None = None
    embedding: Mapping[str, Any] | None = None
    backbone: str | Mapping[str, Any] | None = None
    asynchronous: str | Mapping[str, Any] | None = None
    correlation: float = 1.0
    neighbours: float = 1.0
    seed: int | None = None

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        return [
            *at_least(0, correlation=options.get("correlation")),
            *within(0, 1, "it is a share", neighbours=options.get("neighbours")),
            *at_least(0, seed=options.get("seed")),
        ]


@dataclass(frozen=True)
class MembersPlan:
    """The networks' checked options.

    Attributes:
        ensemble: For ``build_ensemble``.
        count: N.
        updates: By member the kind and options of its asynchronous update; None for the recipe's.
        correlation: By member what its correlation losses count; None = 1 for all.
        neighbours: By member what its share of soft targets is multiplied by; None = 1 for all.
    """

    ensemble: Options
    count: int
    updates: tuple[tuple[str, Options] | None, ...] = ()
    correlation: tuple[float, ...] | None = None
    neighbours: tuple[float, ...] | None = None

    @property
    def weights_chosen(self) -> bool:
        """Whether the members' weights are chosen on validation."""
        return self.ensemble.get("weights") == "validation"

    @property
    def offset_chosen(self) -> bool:
        """Whether the place of untrained items is chosen on validation."""
        return self.ensemble.get("untrained_offset") == "validation"

    def asynchronous(
        self, common: AsynchronousUpdate
    ) -> AsynchronousUpdate | list[AsynchronousUpdate]:
        """The members' updates, or one for all.

        Args:
            common: The recipe's own.
        """
        if not any(self.updates):
            return common
        return [common if one is None else ASYNCHRONOUS[one[0]](**one[1]) for one in self.updates]


def plan_members(
    checks: Checks, *, embedding: Options, sizes: Mapping[str, int | None]
) -> MembersPlan:
    """Check the ensemble's section, and that every network has something to read.

    Args:
        checks: Of the recipe; gets the problems.
        embedding: The student's checked options of the item embedding.
        sizes: What every backbone is given besides, where it is known.
    """
    recipe = checks.recipe
    given = {"build": None, "seed": None, "trained": None}
    ensemble = checks.options(build_ensemble, recipe.ensemble, "ensemble", given=given)
    members = ensemble.get("members", 1)
    if ensemble.get("untrained_offset") is not None and (
        recipe.student.score_with != "fused" or not recipe.encoders
    ):
        checks.problem(
            "ensemble.untrained_offset",
            "set, but items are scored by their ids alone, which says nothing of an item that "
            "never trains; use student.score_with: fused and an encoder, or leave it out",
        )
    if isinstance(members, int):
        _check_sources(checks, "student", embedding.get("ids", True), tuple(recipe.encoders))
        _check_frozen(checks, [embedding.get("adapter")])
        return MembersPlan(ensemble, members)
    keys = [f"ensemble.members[{n}]" for n in range(len(members))]
    said = [
        MemberOptions(**checks.options(MemberOptions, member, key))
        for key, member in zip(keys, members, strict=True)
    ]
    for modality in recipe.encoders:
        if not any(modality in _modalities(checks, one) for one in said):
            checks.problem(
                "ensemble.members",
                f"no member reads {modality}; name it in one, or drop it with "
                f"encoders.{modality}: null",
            )
    if ensemble.get("modality_tables", "shared") == "shared":
        _check_shared(checks, said)
    pairs = list(zip(keys, said, strict=True))
    own = [{**embedding, **(one.embedding or {})}.get("adapter") for one in said]
    _check_frozen(checks, own)
    for (key, one), adapter in zip(pairs, own, strict=True):
        if adapter and one.asynchronous is not None:
            checks.problem(f"{key}.asynchronous", "set, but its tables are frozen (adapter)")
    return MembersPlan(
        ensemble={
            **ensemble,
            "members": [_built(checks, key, one, embedding, sizes) for key, one in pairs],
        },
        count=len(said),
        updates=tuple(_update(checks, key, one) for key, one in pairs),
        correlation=_unless_1(one.correlation for one in said),
        neighbours=_unless_1(one.neighbours for one in said),
    )


def _modalities(checks: Checks, one: MemberOptions) -> tuple[str, ...]:
    return tuple(checks.recipe.encoders) if one.modalities is None else tuple(one.modalities)


def _check_sources(checks: Checks, key: str, ids: bool, modalities: Sequence[str]) -> None:
    """A network must have something to read, and to score with."""
    for modality in modalities:
        if modality not in checks.recipe.encoders:
            known = ", ".join(checks.recipe.encoders) or "none"
            checks.problem(
                f"{key}.modalities", f"got {modality}, wanted some of the encoders: {known}"
            )
    if ids:
        return
    if not modalities:
        checks.problem(
            key, "has neither ids nor a modality, so there is nothing to read; give it one"
        )
    if checks.recipe.student.score_with != "fused":
        checks.problem(
            key,
            f"has no ids, but student.score_with is {checks.recipe.student.score_with}, wanted "
            "fused: a network without ids scores with its modalities",
        )


def _check_shared(checks: Checks, said: Sequence[MemberOptions]) -> None:
    """A table that several networks hold steps in one way and is distilled once."""
    for modality in checks.recipe.encoders:
        own = [one for one in said if modality in _modalities(checks, one)]
        for name in ("asynchronous", "correlation"):
            if any(getattr(one, name) != getattr(own[0], name) for one in own):
                checks.problem(
                    "ensemble.modality_tables",
                    f"got shared, wanted own: members that share the table of {modality} differ in "
                    f"{name}",
                )


def _check_frozen(checks: Checks, adapters: Sequence[str | None]) -> None:
    """Where an adapter freezes all tables, nothing lags behind and nothing decays."""
    if not all(adapters):
        return
    for key, value, usual in (
        ("asynchronous", checks.recipe.asynchronous.kind, "none"),
        ("training.decay_towards", checks.recipe.training.get("decay_towards", "zero"), "zero"),
    ):
        if value != usual:
            checks.problem(
                key,
                f"got {value}, but student.embedding.adapter freezes the tables; leave it out, or "
                "the adapter",
            )


def _built(
    checks: Checks,
    key: str,
    one: MemberOptions,
    embedding: Options,
    sizes: Mapping[str, int | None],
) -> Options:
    """What the network is built of, as ``StudentSpec.build`` takes it; without what is as usual."""
    built: Options = {}
    changes = _embedding(checks, key, one, embedding)
    ids = bool(changes.get("ids", embedding.get("ids", True)))
    _check_sources(checks, key, ids, _modalities(checks, one))
    if changes:
        built["embedding"] = changes
    if one.modalities is not None:
        built["modalities"] = list(one.modalities)
    if one.backbone is not None:
        built["backbone"] = _backbone(checks, key, one.backbone, sizes)
    if one.seed is not None:
        built["seed"] = one.seed
    return built


def _embedding(checks: Checks, key: str, one: MemberOptions, embedding: Options) -> Options:
    changes = dict(one.embedding or {})
    for name in [name for name in _COMMON if name in changes]:
        del changes[name]
        checks.problem(
            f"{key}.embedding.{name}",
            "all members have the student's, for their states, scores and tables are compared; "
            f"set student.embedding.{name}",
        )
    if "ids" in changes:
        del changes["ids"]
        checks.problem(f"{key}.embedding.ids", f"stands beside embedding; give {key}.ids")
    if one.ids is not None:
        changes["ids"] = one.ids
    if changes.get("ids") is False and embedding.get("id_dropout"):
        changes.setdefault("id_dropout", 0.0)  # there is nothing to drop
    program = ("item_count", "modalities", "present", "trained", "shards")
    whole = (
        checks.options(
            FusedItemEmbedding,
            {**embedding, **changes},
            f"{key}.embedding" if changes else "student.embedding",
            given=dict.fromkeys(program),
        )
        if changes
        else {}
    )
    return {name: whole[name] for name in changes if name in whole}


def _backbone(
    checks: Checks, key: str, given: str | Mapping[str, Any], sizes: Mapping[str, int | None]
) -> Options:
    """A backbone over the student's; it must look the same way."""
    own = checks.recipe.student.backbone
    over = {"backbone": {"kind": given} if isinstance(given, str) else given}
    merged = merge({"backbone": {"kind": own.kind, **own.options}}, over)["backbone"]
    spec = Spec.model_validate(merged)
    try:
        found, usual = backbone_class(spec.kind), backbone_class(own.kind)
    except ValueError as error:
        checks.problem(f"{key}.backbone.kind", str(error))
        return {}
    if bool(getattr(found, "causal", True)) != bool(getattr(usual, "causal", True)):
        checks.problem(
            f"{key}.backbone.kind",
            f"got {spec.kind} beside the student's {own.kind}, wanted one that looks the same way: "
            "causal and bidirectional networks learn from other batches",
        )
    options = checks.options(found, spec.options, f"{key}.backbone", given=sizes)
    return {"kind": spec.kind, **options}


def _update(checks: Checks, key: str, one: MemberOptions) -> tuple[str, Options] | None:
    if one.asynchronous is None:
        return None
    spec = Spec.model_validate(one.asynchronous)
    return spec.kind, checks.chosen(spec, ASYNCHRONOUS, f"{key}.asynchronous")


def _unless_1(shares: Iterable[float]) -> tuple[float, ...] | None:
    found = tuple(shares)
    return None if all(share == 1 for share in found) else found
