"""``student.json``'s content to an untrained network; training starts from it, serving fills it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmkd.student import FusedItemEmbedding, Recommender, build_backbone


def build_student(
    spec: Mapping[str, Any],
    teachers: Mapping[str, Tensor] | None = None,
    present: Mapping[str, Tensor] | None = None,
) -> Recommender:
    """Build an untrained network from ``student.json``'s content.

    Args:
        spec: ``item_count``, ``max_length``, ``embedding`` and ``backbone`` options,
            ``score_with``, and ``modalities``: name to the teacher's width.
        teachers: Reduced teachers [I+1, d_t] by name to start from; None for zeros.
        present: Masks [I+1] by name that go with them.
    """
    rows = spec["item_count"] + 1
    if teachers is None:
        teachers = {name: torch.zeros(rows, dim) for name, dim in spec["modalities"].items()}
    embedding = FusedItemEmbedding(
        item_count=spec["item_count"], modalities=teachers, present=present, **spec["embedding"]
    )
    backbone = build_backbone(
        width=spec["embedding"]["width"], max_length=spec["max_length"], **spec["backbone"]
    )
    return Recommender(embedding=embedding, backbone=backbone, score_with=spec["score_with"])
