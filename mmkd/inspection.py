"""Questions to a cache or a trained run, asked by recipe; ``pipeline`` makes what is asked about.

Why items lack a vector, what is near an item by its encoder, and how a trained run ranks again.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmkd.data.readers import load_items
from mmkd.data.sequences import SequenceSplit
from mmkd.embedding_cache import CacheError, EmbeddingCache, EmbeddingTable
from mmkd.evaluation import CaseRanks, compare
from mmkd.plan import Plan, plan
from mmkd.recipe import load_recipe
from mmkd.serving.run_folder import RunError, RunFolder
from mmkd.stages import EmbedProgress, digests_of, embed, load_data, rank_cases


def absent_reasons(
    planned: Plan, tables: Mapping[str, EmbeddingTable]
) -> dict[str, dict[str, int]]:
    """Why items lack a vector: modality name to reason to count."""
    cache = EmbeddingCache(**planned.cache)
    found: dict[str, dict[str, int]] = {}
    for name, table in tables.items():
        try:
            reasons = Counter(item.reason for item in cache.absent(table))
        except CacheError:  # a cache that cannot be written keeps no reasons
            absent = len(table) - int(table.present.sum())
            reasons = Counter({"a reason that a read-only cache cannot keep": absent})
        found[name] = dict((+reasons).most_common())
    return found


def evaluate(folder: Path, *, cases: str = "test") -> dict[str, Any]:
    """Evaluate a run's student again on its own split.

    Args:
        folder: A trained run.
        cases: ``test`` or ``valid``.

    Returns:
        The report, as ``summarise`` gives it.

    Raises:
        RunError: The folder holds no trained run, or the data changed since.
    """
    planned, split, ranks = _rank_again(RunFolder(folder), cases)
    return planned.evaluator.report(ranks, split, seed=planned.recipe.seed)


def compare_runs(
    first: Path, second: Path, *, cases: str = "test", metric: str = "NDCG@10"
) -> dict[str, Any]:
    """Is one run better than another? The ``test`` cases are those the runs keep.

    Args:
        first: A trained run.
        second: Another on the same data.
        cases: ``test``, or ``valid`` to choose between settings: both runs rank those again.
        metric: Which metric to compare.

    Returns:
        As ``compare`` gives it.

    Raises:
        RunError: A folder holds no trained run, or the data changed since.
        EvaluationError: The runs' cases differ.
    """
    runs = (RunFolder(first), RunFolder(second))
    if cases == "test":
        return compare(runs[0].ranks(), runs[1].ranks(), metric=metric)
    ranks = [_rank_again(run, cases)[2] for run in runs]
    return compare(ranks[0], ranks[1], metric=metric)


def _rank_again(run: RunFolder, cases: str) -> tuple[Plan, SequenceSplit, CaseRanks]:
    student = run.student()
    planned = plan(load_recipe(str(run.recipe)), needs_teacher=False)
    data = load_data(planned)
    run.check_data(digests_of(data))
    accelerator = planned.trainer.accelerator(run_folder=run.path)
    student.to(accelerator.device)
    chosen = data.split.test if cases == "test" else data.split.valid
    return planned, data.split, rank_cases(planned, data.split, student, accelerator, chosen)


def encoder_neighbours(
    planned: Plan,
    item: str,
    *,
    modality: str,
    k: int = 10,
    progress: EmbedProgress | None = None,
) -> list[dict[str, Any]]:
    """The k nearest items by an encoder's vectors, encoding what the cache lacks.

    Args:
        planned: The recipe.
        item: The item's id.
        modality: Name of one of the recipe's encoders.
        k: How many.
        progress: Told how far the embedding is.

    Returns:
        ``{"item", "title", "score"}`` each, best first; scores are cosines.

    Raises:
        RunError: The recipe has no such modality.
        DataError: The id is not in the catalogue.
        CacheError: The item lacks the modality.
    """
    if modality not in planned.cards:
        raise RunError(
            f"{planned.recipe.name} has no encoder for {modality}; it has "
            f"{', '.join(planned.cards) or 'none'}"
        )
    items = load_items(root=planned.recipe.data.folder, **planned.items)
    row = items.row(item)
    only = replace(planned, cards={modality: planned.cards[modality]})
    table = embed(only, items, progress=progress)[modality]
    rows, scores = EmbeddingCache(**planned.cache).neighbours(table, np.array([row]), k)
    return [
        {"item": items.ids[r], "title": items.titles[r], "score": float(score)}
        for r, score in zip(rows[0], scores[0], strict=True)
        if r > 0
    ]
