"""Baselines of a recipe's data, evaluated as its student is: same cases, candidates and cut-offs.

``in_passing`` are the cheap ones, which ``train`` puts beside its own figures; ``baselines`` adds
each encoder's content neighbours.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mmkd.config.plan import Plan
from mmkd.data.splits import SequenceSplit
from mmkd.evaluation import ContentKNN, Evaluator, ItemKNN, Popularity, Transition
from mmkd.evaluation.evaluator import Processes, Scorer
from mmkd.pipeline.embed import EmbedProgress, embed

Makers = Mapping[str, Callable[[], Scorer]]

# beyond these a baseline is no longer cheap: minutes on one core
MOST_SCORES = 20_000_000_000
MOST_PAIRS = 5_000_000_000


def baselines(
    planned: Plan,
    *,
    embed_progress: EmbedProgress | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate every baseline on a recipe's data; encodes what the cache lacks.

    Args:
        planned: The recipe.
        embed_progress: Told how far each modality is.
        progress: Told how many baselines of how many are done.

    Returns:
        As ``evaluate_baselines``: popularity, transition, item-knn, and content-NAME for each of
        the recipe's encoders.
    """
    data = planned.load_data()
    makers = _makers(data.split)
    for name, table in embed(planned, data.items, progress=embed_progress).items():
        makers[f"content-{name}"] = partial(ContentKNN, table)
    return evaluate_baselines(
        makers, planned.evaluator, data.split, seed=planned.recipe.seed, progress=progress
    )


def evaluate_baselines(
    makers: Makers,
    evaluator: Evaluator,
    split: SequenceSplit,
    *,
    seed: int = 0,
    processes: Processes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Make baselines one after the other, and evaluate each on test and validation.

    Args:
        makers: Name to what makes the scorer.
        evaluator: How the student is evaluated.
        split: The events.
        seed: Of the bootstrap.
        processes: Who shares the cases; each makes the scorers itself.
        progress: Told how many baselines of how many are done.

    Returns:
        Name to ``{"test": report, "breakdown": {"test": its breakdown}, "valid": metrics,
        "seconds": of making and evaluating it}``.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, make in makers.items():
        if progress:
            progress(len(found), len(makers))
        began = time.monotonic()
        scorer = make()
        ranks = evaluator.ranks(scorer, split, split.test, processes=processes)
        cases = evaluator.sample(split.valid)
        valid = evaluator.ranks(scorer, split, cases, processes=processes, list_length=0)
        test = evaluator.report(ranks, split, seed=seed)
        found[name] = {
            "breakdown": {"test": test.pop("breakdown")},
            "test": test,
            "valid": evaluator.metrics(valid),
            "seconds": round(time.monotonic() - began, 2),
        }
    if progress:
        progress(len(makers), len(makers))
    return found


def in_passing(split: SequenceSplit, *, announce: Callable[[str], None] | None = None) -> Makers:
    """The baselines that cost little beside a training on this data.

    Args:
        split: The events.
        announce: Told in one line what is left out, and why.

    Returns:
        Name to what makes the scorer; empty where a ranking of all cases is costly by itself.
    """
    makers = _makers(split)
    scores = (len(split.valid) + len(split.test)) * split.item_count
    pairs = ItemKNN.pair_count(split)
    left_out = None
    if scores > MOST_SCORES:
        left_out, makers = f"baselines: left out, {scores:.2g} scores a baseline", {}
    elif pairs > MOST_PAIRS:
        left_out = f"baselines: item-knn left out, {pairs:.2g} pairs of one user's items to count"
        del makers["item-knn"]
    if left_out and announce:
        most = MOST_SCORES if scores > MOST_SCORES else MOST_PAIRS
        announce(
            f"{left_out} (in passing at most {most:.2g}); mmkd baselines RECIPE takes its time"
        )
    return makers


def _makers(split: SequenceSplit) -> dict[str, Callable[[], Scorer]]:
    return {
        "popularity": partial(Popularity, split),
        "transition": partial(Transition, split),
        "item-knn": partial(ItemKNN, split),
    }
