"""The demo: the main job on a made-up catalogue, from drawing its pictures to a table of results.

Three variants of one recipe with one budget: item ids only, ids fused with modalities, and KDSR,
which also holds the modalities to the encoders' correlations.
"""

import json
from pathlib import Path
from typing import Any

from mmkd.data.synthetic import make_synthetic
from mmkd.pipeline import EmbedProgress, train
from mmkd.recipe import load_recipe

VARIANTS: dict[str, list[str]] = {
    "id only": [
        "name=demo-id",
        "encoders=null",
        "distiller=null",
        "student.score_with=id",
        "objective.correlation=null",
        "asynchronous=none",
    ],
    "fused": [
        "name=demo-fused",
        "objective.correlation=null",
        "asynchronous=none",
    ],
    "KDSR": ["name=demo-kdsr"],
}


def run_demo(
    folder: Path,
    *,
    items: int = 1000,
    users: int = 4000,
    epochs: int | None = None,
    seed: int = 0,
    progress: EmbedProgress | None = None,
) -> dict[str, dict[str, Any]]:
    """Make the catalogue and run every variant; runs of an earlier demo are replaced.

    Args:
        folder: Gets ``data/``, ``cache/`` and ``runs/``.
        items: Size of the catalogue.
        users: Users of the log.
        epochs: At most, for each variant; None for the recipe's own.
        seed: Of the catalogue and of every variant.
        progress: Told how far the embedding is.

    Returns:
        Variant to the content of its ``result.json``.
    """
    make_synthetic(folder / "data", items=items, users=users, seed=seed)
    shared = [
        f"data.root={_quoted(folder / 'data')}",
        f"cache.folder={_quoted(folder / 'cache')}",
        f"seed={seed}",
    ]
    if epochs is not None:
        shared.append(f"training.epochs={epochs}")
    return {
        title: train(
            load_recipe("quickstart", [*shared, *changes]),
            folder=folder / "runs" / changes[0].removeprefix("name="),
            overwrite=True,
            progress=progress,
        )
        for title, changes in VARIANTS.items()
    }


def _quoted(path: Path) -> str:
    """A path as an override's value, which is YAML: it may hold `#`, `: ` or `${`."""
    return json.dumps(str(path).replace("${", "\\${"), ensure_ascii=False)
