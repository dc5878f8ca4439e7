"""The demo: the main job on a made-up catalogue, from drawing its pictures to a table of results.

Variants of one recipe with one budget: item ids only; ids fused with modalities; KDSR, which also
holds the modalities to the encoders' correlations; EMKD, three networks on ids that teach each
other; both together; and one network that learnt from those.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmkd.config.recipe import load_recipe, quoted
from mmkd.demo.catalogue import make_synthetic
from mmkd.pipeline.embed import EmbedProgress
from mmkd.pipeline.train import train

_NO_CORRELATION = ["objective.correlation=null", "asynchronous=none"]
_EMKD = [
    "ensemble.members=3",
    "task.views=1",
    "objective.attributes={weight: 1.0}",
    "objective.contrastive={temperature: 0.3}",
    "objective.mutual={weight: 0.1}",
]
VARIANTS: dict[str, list[str]] = {
    "id only": ["name=demo-id", "encoders=null"],
    "fused": ["name=demo-fused", *_NO_CORRELATION],
    "KDSR": ["name=demo-kdsr"],
    "EMKD": ["name=demo-emkd", "encoders=null", *_EMKD],
    "full": ["name=demo-full", *_EMKD],
    "compressed": ["name=demo-compressed", "objective.attributes={weight: 1.0}"],
}


def run_demo(
    folder: Path,
    *,
    items: int = 1000,
    users: int = 4000,
    epochs: int | None = None,
    seed: int = 0,
    progress: EmbedProgress | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Make the catalogue and run every variant; runs of an earlier demo are replaced.

    Args:
        folder: Gets ``data/``, ``cache/`` and ``runs/``.
        items: Size of the catalogue.
        users: Users of the log.
        epochs: At most, for each variant; None for the recipe's own.
        seed: Of the catalogue and of every variant.
        progress: Told how far the embedding is.
        announce: Told in one line what each variant trains on.

    Returns:
        Variant to the content of its ``result.json``.
    """
    make_synthetic(folder / "data", items=items, users=users, seed=seed)
    shared = [
        f"data.root={quoted(folder / 'data')}",
        f"cache.folder={quoted(folder / 'cache')}",
        f"seed={seed}",
    ]
    if epochs is not None:
        shared.append(f"training.epochs={epochs}")
    runs = folder / "runs"
    taught = f"objective.compression.teacher={quoted(runs / 'demo-full')}"
    return {
        title: train(
            load_recipe(
                "quickstart", [*shared, *changes, *([taught] if title == "compressed" else [])]
            ),
            folder=runs / changes[0].removeprefix("name="),
            overwrite=True,
            progress=progress,
            announce=announce,
        )
        for title, changes in VARIANTS.items()
    }
