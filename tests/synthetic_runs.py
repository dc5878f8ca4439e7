"""Recipes over the made-up catalogue that train in seconds, for tests of the whole flow."""

import json
from pathlib import Path
from typing import Any

from mmkd import Recipe, load_recipe
from mmkd.demo import make_synthetic

TINY = [
    "training.epochs=2",
    "training.batch_size=64",
    "training.max_length=12",
    "training.threads=1",
    "training.cpu=true",
    "student.embedding.width=16",
    "distiller.dim=16",
    "distiller.codes=8",
    "distiller.sampled_pairs=4000",
    "evaluation.resamples=50",
]

BERT4REC = [
    "name=bert",
    "student.backbone={kind: bert4rec, layers: 1, heads: 2, dropout: 0.1}",
    "task={kind: masked_item, mask_ratio: 0.3, last_only: 0.2}",
]
GRU4REC = ["name=gru", "student.backbone={kind: gru4rec}", "student.score_with=id"]
RGAT = ["name=rgat", "student.backbone={kind: rgat, layers: 2}"]
MASKED = [
    *BERT4REC,
    "task={kind: masked_item, mask_ratio: 0.3, views: 2, window_step: 3}",
]
EMKD = [
    "name=emkd",
    "ensemble={members: 2}",
    "objective.attributes={weight: 1.0}",
    "objective.contrastive={intra_weight: 0.01, cross_weight: 0.01, temperature: 0.5}",
    "objective.mutual={weight: 0.1, temperature: 0.5}",
]
CORRELATION = {"holistic": 0.4, "dissected": 0.05}  # quickstart's weights


def write_data(root: Path) -> list[str]:
    """Make the catalogue below `root`; returns the overrides that point there."""
    make_synthetic(root / "data", items=120, users=200)
    return [f"data.root={root / 'data'}", f"cache.folder={root / 'cache'}", *TINY]


def recipe_of(overrides: list[str], *more: str) -> Recipe:
    return load_recipe("quickstart", [*overrides, *more])


def history(folder: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((folder / "history.json").read_text("utf-8"))
    seconds = ("train_seconds", "valid_seconds")
    return [{k: v for k, v in record.items() if k not in seconds} for record in records]
