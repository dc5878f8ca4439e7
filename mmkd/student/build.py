"""StudentSpec: the content of ``student.json`` to untrained networks.

Training starts from them; reading a finished run fills them with its weights.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import inf, prod
from typing import Any, Self

import torch
from torch import Tensor

from mmkd import __version__
from mmkd.memory import check_fits
from mmkd.student.backbones import BACKBONES, build_backbone
from mmkd.student.ensemble import Ensemble, build_ensemble
from mmkd.student.item_embedding import FusedItemEmbedding
from mmkd.student.recommender import Recommender, ScoreWith
from mmkd.student.rows import TableShards, TeacherRows


@dataclass(frozen=True, kw_only=True)
class StudentSpec:
    """All that a student is built from, except the teachers and the weights.

    Attributes:
        mmkd: The version that trained it.
        item_count: I.
        max_length: The longest sequence it reads, mask token included.
        embedding: Options of `FusedItemEmbedding`, `width` among them.
        backbone: Its `kind` and options.
        score_with: As for `Recommender`.
        ensemble: Options of `build_ensemble`. Of members that differ, `members` says by what from
            the rest: `embedding`, options that it has otherwise; `modalities`, which of them it
            has; `backbone`, whole; `seed`.
        modalities: Name to the teacher's width.
    """

    mmkd: str = __version__
    item_count: int
    max_length: int
    embedding: Mapping[str, Any]
    backbone: Mapping[str, Any]
    score_with: ScoreWith
    ensemble: Mapping[str, Any]
    modalities: Mapping[str, int]

    def build(
        self,
        teachers: Mapping[str, TeacherRows] | None = None,
        present: Mapping[str, Tensor] | None = None,
        trained: Tensor | None = None,
        *,
        seed: int | None = None,
        shards: TableShards | None = None,
    ) -> Ensemble:
        """Build untrained networks.

        Args:
            teachers: Reduced teachers [I+1, d_t] by name to start from; None for zeros.
            present: Masks [I+1] by name that go with them.
            trained: [I+1] bool, see `FusedItemEmbedding`.
            seed: Network n is drawn from ``seed + n``; None where weights are loaded afterwards.
            shards: As for `FusedItemEmbedding`.
        """
        rows = self.item_count + 1

        def network(
            *,
            embedding: Mapping[str, Any] | None = None,
            modalities: Collection[str] | None = None,
            backbone: Mapping[str, Any] | None = None,
        ) -> Recommender:
            options = {**self.embedding, **(embedding or {})}
            has = self.modalities if modalities is None else modalities
            given: Mapping[str, TeacherRows] | None = teachers
            if given is None:  # only where a frozen teacher is the table is its width seen again
                width = None if options.get("adapter") else options["width"]
                given = {
                    name: torch.zeros(rows, width or dim)
                    for name, dim in self.modalities.items()
                    if name in has
                }
            return Recommender(
                embedding=FusedItemEmbedding(
                    item_count=self.item_count,
                    modalities={name: given[name] for name in given if name in has},
                    present={name: mask for name, mask in (present or {}).items() if name in has},
                    trained=trained,
                    shards=shards,
                    **options,
                ),
                backbone=build_backbone(
                    width=self.embedding["width"],
                    max_length=self.max_length,
                    **(backbone or self.backbone),
                ),
                score_with=self.score_with,
                max_length=self.max_length,
            )

        return build_ensemble(network, seed=seed, trained=trained, **self.ensemble)

    def check_weights(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Refuse weights that are not those of these networks, before anything of a size is built.

        >>> from mmkd.student import StudentSpec
        >>> spec = StudentSpec(
        ...     item_count=3, max_length=5, embedding={"width": 4}, backbone={"kind": "gru4rec"},
        ...     score_with="fused", ensemble={}, modalities={})
        >>> spec.check_weights({k: v.shape for k, v in spec.build().state_dict().items()})

        Args:
            shapes: Of the weights, by name, such as a file's header tells them.

        Raises:
            ValueError: A weight is lacking, left over or of another shape.
        """
        held = {name.split(".")[1] for name in shapes if name.startswith("members.")}
        members = self.ensemble.get("members", 1)
        if (count := members if isinstance(members, int) else len(members)) != len(held):
            raise ValueError(f"members: got {count}, but the weights are of {len(held)}")
        backbones = [one.backbone for one in self._networks()]
        for backbone in backbones:  # so that what follows takes no longer than reading the weights
            if (layers := backbone.get("layers", 1)) > len(shapes):
                raise ValueError(f"layers: got {layers}, but there are {len(shapes)} weights")
        wanted = self._shapes()
        own = all(backbone["kind"] in BACKBONES for backbone in backbones)
        for name in sorted(wanted.keys() | shapes.keys()):
            got, due = (list(of[name]) if name in of else "none" for of in (shapes, wanted))
            if got != due and (own or ".backbone." not in name):
                raise ValueError(f"{name}: the weights are {got}, the options ask for {due}")

    def check_fits(self) -> list[str]:
        """A line where the networks are larger than memory; nothing is built to tell it.

        >>> from dataclasses import replace
        >>> from mmkd.student import StudentSpec
        >>> spec = StudentSpec(
        ...     item_count=3, max_length=5, embedding={"width": 4}, backbone={"kind": "sasrec"},
        ...     score_with="fused", ensemble={}, modalities={})
        >>> spec.check_fits(), len(replace(spec, ensemble={"members": 10**12}).check_fits())
        ([], 1)
        """
        members = self.ensemble.get("members", 1)
        try:
            numbers = sum(_numbers(one, tables=not n) for n, one in enumerate(self._networks()))
            if isinstance(members, int) and members > 1:
                numbers += (members - 1) * _numbers(replace(self, ensemble={}), tables=False)
        except RuntimeError:  # more than torch can count
            numbers = inf
        return check_fits(
            4 * numbers,
            "student: its weights would take",
            "lower student.embedding.width, the backbone's sizes, training.max_length or "
            "ensemble.members",
        )

    def _networks(self) -> list[Self]:
        """The different networks, each as an ensemble of one; of equal ones the first."""
        members = self.ensemble.get("members", 1)
        return [
            replace(
                self,
                embedding={**self.embedding, **member.get("embedding", {})},
                backbone=member.get("backbone") or self.backbone,
                modalities={
                    name: dim
                    for name, dim in self.modalities.items()
                    if name in member.get("modalities", self.modalities)
                },
                ensemble={},
            )
            for member in ([{}] if isinstance(members, int) else members)
        ]

    def _shapes(self) -> dict[str, Sequence[int]]:
        """By name the shapes of the state dict that `build` gives; nothing is allocated.

        Of another's backbone they are not known: it may not be one that can be built so.
        """
        spec = self
        if any(one.backbone["kind"] not in BACKBONES for one in self._networks()):
            members = self.ensemble.get("members", 1)
            if not isinstance(members, int):
                members = [{k: v for k, v in one.items() if k != "backbone"} for one in members]
            stand_in = {"kind": "gru4rec"}
            spec = replace(self, backbone=stand_in, ensemble={**self.ensemble, "members": members})
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in spec.build().state_dict().items()}

    def to_json(self) -> dict[str, Any]:
        """The content of ``student.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote, this version's or an older one's.

        Raises:
            ValueError: A key is missing.
        """
        names = [field.name for field in fields(cls)]
        if lacking := [name for name in names if name not in content]:
            raise ValueError(f"lacks {', '.join(lacking)}")
        return cls(**{name: content[name] for name in names})


def _numbers(spec: StudentSpec, *, tables: bool) -> float:
    """How many numbers one network holds, with or without its modality tables.

    Layers are alike: what one more of them takes tells what any number does.
    """

    def numbers(spec: StudentSpec) -> float:
        shapes = spec._shapes().items()
        return sum(prod(shape) for name, shape in shapes if tables or ".tables." not in name)

    if "layers" not in spec.backbone:
        return numbers(spec)
    one, two = (numbers(replace(spec, backbone={**spec.backbone, "layers": n})) for n in (1, 2))
    return one + (int(spec.backbone["layers"]) - 1) * (two - one)
