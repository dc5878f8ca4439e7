"""The demo: the main job on a made-up catalogue, from drawing its pictures to a report of its runs.

A shop as thin in events as real ones are, with new items. Variants of one recipe with one budget:
item ids only; ids fused with modalities; KDSR, which also holds the modalities to the encoders'
correlations; content alone, read through an adapter; two networks that differ, the fused one and
the one on content, summed; and one network that learnt from those two.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.config.recipe import load_recipe, quoted
from mmkd.demo.behaviour import MOODS
from mmkd.demo.catalogue import SyntheticCatalogue, make_synthetic
from mmkd.pipeline.embed import EmbedProgress
from mmkd.pipeline.run import load
from mmkd.pipeline.train import train
from mmkd.report import write_report

_EVENTS = (3, 7)  # of a user
_NO_CORRELATION = ["objective.correlation=null", "asynchronous=none"]
# the place of new items is chosen on validation, at 3% of its metric
_PLACED = ["ensemble.untrained_offset=validation", "ensemble.untrained_price=0.03"]
_UNLIKE = [
    "ensemble.members=[{}, {ids: false, embedding: {adapter: mlp}}]",
    "ensemble.modality_tables=own",
    "ensemble.inference=standardized",
    "ensemble.weights=validation",
]
_CONTENT = ["student.embedding.ids=false", "student.embedding.adapter=mlp"]
VARIANTS: dict[str, list[str]] = {
    "id only": ["name=demo-id", "encoders=null"],
    "fused": ["name=demo-fused", *_NO_CORRELATION, *_PLACED],
    "KDSR": ["name=demo-kdsr", *_PLACED],
    "content": ["name=demo-content", *_NO_CORRELATION, *_CONTENT, *_PLACED],
    "unlike": ["name=demo-unlike", *_NO_CORRELATION, *_UNLIKE, *_PLACED],
    "compressed": ["name=demo-compressed", *_NO_CORRELATION, *_PLACED],
}

_IN_FRONT = "demo-unlike"  # of the report: the best lists


def run_demo(
    folder: Path,
    *,
    items: int = 2000,
    users: int = 3000,
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
        Variant to the content of its ``result.json``, and ``alike``: the share of listed items
        that share a whole mood with the last item taken, which is what these users follow.
    """
    shop = make_synthetic(folder / "data", items=items, users=users, events=_EVENTS, seed=seed)
    shared = [
        f"data.root={quoted(folder / 'data')}",
        f"cache.folder={quoted(folder / 'cache')}",
        f"seed={seed}",
    ]
    if epochs is not None:
        shared.append(f"training.epochs={epochs}")
    runs = folder / "runs"
    taught = f"objective.compression.teacher={quoted(runs / 'demo-unlike')}"
    found = {}
    for title, changes in VARIANTS.items():
        run = runs / changes[0].removeprefix("name=")
        taught_by = [taught] if title == "compressed" else []
        recipe = load_recipe("quickstart", [*shared, *changes, *taught_by])
        result = train(recipe, folder=run, overwrite=True, progress=progress, announce=announce)
        found[title] = {**result, "alike": alike(shop, load(run).recommend(users="all", k=10))}
    return found


def report_demo(folder: Path) -> Path:
    """Write a report of the demo's runs, the best in front, and return its file.

    Args:
        folder: As for ``run_demo``, which ran.

    Raises:
        MmkdError: As for ``mmkd.write_report``.
    """
    names = [changes[0].removeprefix("name=") for changes in VARIANTS.values()]
    names.sort(key=lambda name: name != _IN_FRONT)
    return write_report([load(folder / "runs" / name) for name in names], folder / "report.html")


def alike(shop: SyntheticCatalogue, lists: pl.DataFrame) -> float:
    """The share of listed items that share all facets of a mood with their user's last item."""
    rows = {item: row for row, item in enumerate(shop.ids)}
    last = dict(
        pl.read_csv(shop.interactions_path, columns=["user_id", "item_id"]).iter_rows()
    )  # by time: the last one stays
    listed = np.array([rows[item] for item in lists["item_id"]])
    before = np.array([rows[last[user]] for user in lists["query"]])
    return float(_share_a_mood(shop, before, listed).mean())


def _share_a_mood(
    shop: SyntheticCatalogue, first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """[P] for pairs of rows [P]: whether they have every facet of at least one mood in common."""
    matching: NDArray[np.bool_] = np.zeros(len(first), dtype=np.bool_)
    for mood in MOODS:
        shared = [shop.facets[name][first] == shop.facets[name][second] for name in mood]
        matching |= np.all(shared, axis=0)
    return matching
