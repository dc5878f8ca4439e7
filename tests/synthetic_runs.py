"""Recipes over the made-up catalogue that train in seconds, for tests of the whole flow."""

from pathlib import Path

from mmkd.data.synthetic import make_synthetic

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
    "objective.recommendation={kind: masked_item, mask_ratio: 0.3, last_only: 0.2}",
]
GRU4REC = ["name=gru", "student.backbone={kind: gru4rec}", "student.score_with=id"]


def write_data(root: Path) -> list[str]:
    """Make the catalogue below `root`; returns the overrides that point there."""
    make_synthetic(root / "data", items=120, users=200)
    return [f"data.root={root / 'data'}", f"cache.folder={root / 'cache'}", *TINY]
