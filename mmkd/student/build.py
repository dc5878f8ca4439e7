"""``student.json``'s content to untrained networks: training's start, what serving fills."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmkd.student import Ensemble, FusedItemEmbedding, Recommender, build_backbone, build_ensemble


def build_student(
    spec: Mapping[str, Any],
    teachers: Mapping[str, Tensor] | None = None,
    present: Mapping[str, Tensor] | None = None,
    *,
    seed: int | None = None,
) -> Ensemble:
    """Build untrained networks from ``student.json``'s content.

    Args:
        spec: ``item_count``, ``max_length``, ``embedding`` and ``backbone`` options,
            ``score_with``, ``ensemble`` options, and ``modalities``: name to the teacher's width.
        teachers: Reduced teachers [I+1, d_t] by name to start from; None for zeros.
        present: Masks [I+1] by name that go with them.
        seed: Network n is drawn from ``seed + n``; None where weights are loaded afterwards.
    """
    rows = spec["item_count"] + 1
    if teachers is None:
        teachers = {name: torch.zeros(rows, dim) for name, dim in spec["modalities"].items()}

    def build() -> Recommender:
        embedding = FusedItemEmbedding(
            item_count=spec["item_count"], modalities=teachers, present=present, **spec["embedding"]
        )
        backbone = build_backbone(
            width=spec["embedding"]["width"], max_length=spec["max_length"], **spec["backbone"]
        )
        return Recommender(embedding=embedding, backbone=backbone, score_with=spec["score_with"])

    return build_ensemble(build, seed=seed, **spec["ensemble"])
