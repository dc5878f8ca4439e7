"""RunFolder: where a run keeps what it is, what it learnt and how it did, and how it is read back.

``recipe.yaml`` what was run; ``items.parquet`` the id map and titles; ``student.json`` and
``student.safetensors`` the trained network; ``history.json`` one record an epoch; ``result.json``
the test metrics; ``test_ranks.parquet`` the rank of every test case, for paired tests;
``checkpoints/`` while it trains. Every file is written whole or not at all; none is a pickle.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file

from mmkd.data.items import ItemTable
from mmkd.evaluation.case_ranks import CaseRanks
from mmkd.student import FusedItemEmbedding, Recommender, build_backbone
from mmkd.training.checkpoint import replace_file, write_json


class RunError(ValueError):
    """A run folder isn't what was asked for."""


@dataclass(frozen=True)
class RunFolder:
    """One run's folder.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def finished(self) -> bool:
        """Whether training and the test are done."""
        return (self.path / "result.json").is_file()

    @property
    def started(self) -> bool:
        """Whether there is anything to resume or to overwrite."""
        return self.recipe.is_file()

    def items(self) -> ItemTable:
        """The catalogue as it was trained on; row r is item r."""
        self._require("items.parquet")
        return ItemTable.load(self.path / "items.parquet")

    def write_student_spec(self, spec: dict[str, Any]) -> None:
        """What ``student`` needs to rebuild the network."""
        write_json(self.path / "student.json", spec)

    def student_spec(self) -> dict[str, Any]:
        """Read ``student.json``."""
        self._require("student.json")
        spec: dict[str, Any] = json.loads((self.path / "student.json").read_text("utf-8"))
        return spec

    def student(self, *, device: torch.device | str = "cpu") -> Recommender:
        """The trained network in evaluation mode."""
        self._require("student.safetensors")
        student = build_student(self.student_spec())
        student.load_state_dict(load_file(self.path / "student.safetensors"))
        return student.to(device).eval()

    def write_result(self, result: dict[str, Any]) -> None:
        """Write ``result.json``; its presence says that the run is finished."""
        write_json(self.path / "result.json", result)

    def result(self) -> dict[str, Any]:
        """Read ``result.json``."""
        self._require("result.json")
        result: dict[str, Any] = json.loads((self.path / "result.json").read_text("utf-8"))
        return result

    def write_ranks(self, ranks: CaseRanks, name: str = "test") -> None:
        """Keep every case's rank."""
        table = pl.DataFrame(
            {
                "case": ranks.case,
                "user": ranks.user,
                "target": ranks.target,
                "rank": ranks.rank,
                "ties": ranks.ties,
                "top_items": ranks.top_items,
            }
        )
        replace_file(self.path / f"{name}_ranks.parquet", table.write_parquet)

    def ranks(self, name: str = "test") -> CaseRanks:
        """Read the cases back."""
        self._require(f"{name}_ranks.parquet")
        table = pl.read_parquet(self.path / f"{name}_ranks.parquet")
        columns = {column: table[column].to_numpy() for column in table.columns}
        top = np.asarray(table["top_items"].to_list(), dtype=np.int64).reshape(len(table), -1)
        return CaseRanks(**(columns | {"top_items": top}))

    def _require(self, name: str) -> None:
        if not (self.path / name).is_file():
            raise RunError(
                f"{self.path}: holds no {name}; name the folder of a run that was trained to its "
                "end (mmkd train RECIPE writes runs/NAME)"
            )


def build_student(spec: dict[str, Any], teachers: Any = None, present: Any = None) -> Recommender:
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
