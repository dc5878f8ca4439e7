"""Teachers side by side, before anything trains: a recipe's encoders, and cards beside them."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmkd.config.plan import Plan
from mmkd.data import SequenceSplit
from mmkd.distiller import CorrelationDistiller, TypeShares
from mmkd.embeddings import EmbeddingTable
from mmkd.encoders import load_card
from mmkd.errors import RunError
from mmkd.evaluation.teacher import teacher_worth, validation_pairs
from mmkd.pipeline.embed import EmbedProgress, check_encoders, embed


def teachers(
    planned: Plan, *, against: Sequence[str] = (), progress: EmbedProgress | None = None
) -> dict[str, dict[str, Any]]:
    """What each of a recipe's encoders is worth on its data, and each card it is held against.

    Args:
        planned: The recipe.
        against: Names or paths of further cards, such as the parent of a tuned one.
        progress: Told how far the encoding of what the cache lacks is.

    Returns:
        Name to what ``teacher_worth`` finds, ``card``, ``modality``, ``dim``, ``seconds`` (without
        encoding) and ``types``: for each correlation type of the recipe's distiller, most lifted
        first, its ``type``, ``lift`` (how many times more often it occurs in validation pairs than
        in pairs of the same items dealt anew), ``together`` and ``chance`` (its share of either),
        and ``correlation`` (the mean holistic one of its pairs). The name is the modality's in the
        recipe, or the card's.

    Raises:
        RunError: The recipe has no encoder and there is no card, two have one name, or a modality
            has vectors that cannot be distilled.
        EncoderError: A card is missing or its weights are not to be had.
        EvaluationError: There is no validation pair with vectors.
    """
    cards = dict(planned.cards)
    for card in map(load_card, against):
        if cards.setdefault(card.name, card) != card:
            raise RunError(f"--against {card.name}: is a modality's name in the recipe too")
    if not cards:
        raise RunError(
            f"{planned.recipe.name}: has no encoder; add one (encoders.text=NAME), or name cards "
            "with --against"
        )
    asked = replace(planned, cards=cards)
    check_encoders(asked)
    data = planned.load_data()
    found = {}
    for name, table in embed(asked, data.items, progress=progress).items():
        began = time.monotonic()
        worth = teacher_worth(
            table, data.split, evaluator=planned.evaluator, seed=planned.recipe.seed
        )
        types = _types(planned, name, table, data.split)
        found[name] = {
            "card": cards[name].name,
            "modality": cards[name].modality,
            "dim": table.dim,
            **worth,
            "types": types,
            "seconds": round(time.monotonic() - began, 2),
        }
    return found


def _types(
    planned: Plan, name: str, table: EmbeddingTable, split: SequenceSplit
) -> list[dict[str, float]]:
    """The correlation types of one encoder, most lifted first."""
    try:
        options = planned.distiller or {"seed": planned.recipe.seed}
        distiller = CorrelationDistiller(**options).fit({name: table})
    except ValueError as error:
        raise RunError(f"{planned.recipe.name}: distiller: {error}") from error
    first, second, _ = validation_pairs(split, table.present)
    shares = TypeShares.of(distiller, name, first, second, seed=planned.recipe.seed)
    found = [
        {
            "type": number,
            "lift": float(shares.lift[number]),
            "together": float(shares.together[number]),
            "chance": float(shares.chance[number]),
            "correlation": float(shares.correlation[number]),
        }
        for number in range(len(shares.lift))
    ]
    return sorted(found, key=lambda one: -one["lift"])
