"""StudentSpec: the content of ``student.json`` to untrained networks.

Training starts from them; reading a finished run fills them with its weights.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from mmkd import __version__
from mmkd.student.backbones import build_backbone
from mmkd.student.ensemble import Ensemble, build_ensemble
from mmkd.student.item_embedding import FusedItemEmbedding
from mmkd.student.recommender import Recommender, ScoreWith


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
        teachers: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        trained: Tensor | None = None,
        *,
        seed: int | None = None,
    ) -> Ensemble:
        """Build untrained networks.

        Args:
            teachers: Reduced teachers [I+1, d_t] by name to start from; None for zeros.
            present: Masks [I+1] by name that go with them.
            trained: [I+1] bool, see `FusedItemEmbedding`.
            seed: Network n is drawn from ``seed + n``; None where weights are loaded afterwards.
        """
        if teachers is None:
            rows = self.item_count + 1
            teachers = {name: torch.zeros(rows, dim) for name, dim in self.modalities.items()}

        def network(
            *,
            embedding: Mapping[str, Any] | None = None,
            modalities: Collection[str] | None = None,
            backbone: Mapping[str, Any] | None = None,
        ) -> Recommender:
            has = teachers if modalities is None else modalities
            return Recommender(
                embedding=FusedItemEmbedding(
                    item_count=self.item_count,
                    modalities={name: teachers[name] for name in teachers if name in has},
                    present={name: mask for name, mask in (present or {}).items() if name in has},
                    trained=trained,
                    **{**self.embedding, **(embedding or {})},
                ),
                backbone=build_backbone(
                    width=self.embedding["width"],
                    max_length=self.max_length,
                    **(backbone or self.backbone),
                ),
                score_with=self.score_with,
                max_length=self.max_length,
            )

        return build_ensemble(network, seed=seed, **self.ensemble)

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
