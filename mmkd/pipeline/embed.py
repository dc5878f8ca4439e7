"""Embedding: a catalogue to tables, why items lack a vector, and an encoder's neighbours."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmkd.config.plan import Plan
from mmkd.data import ItemTable
from mmkd.data.inspection import Inspection
from mmkd.data.readers import load_items
from mmkd.embeddings import EmbeddingCache, EmbeddingTable, EncodingSettings, RunReport
from mmkd.encoders import Encoder, EncoderCard
from mmkd.encoders.offline import check_at_hand
from mmkd.errors import CacheError, EncoderError, Interrupted, RecipeError, RunError
from mmkd.interruption import Interruption

EmbedProgress = Callable[[str, int, int], None]  # (modality name, done, of)


def embed(
    planned: Plan,
    items: ItemTable,
    *,
    device: str | None = None,
    progress: EmbedProgress | None = None,
    report: Callable[[str, RunReport], None] | None = None,
) -> dict[str, EmbeddingTable]:
    """Encode each modality of the catalogue once; what the cache holds is not encoded again.

    Any number of processes may do this at once: they share the work, and none waits for another
    while there is something left to encode.

    Args:
        planned: The recipe.
        items: The catalogue.
        device: Where the encoders run; None leaves it to the recipe, as Ray's actors do.
        progress: Told how far each modality is.
        report: Told what this process did for a modality.

    Raises:
        EmbeddingInterrupted: After SIGINT or SIGTERM, once what is encoded is committed.
    """
    cache = EmbeddingCache(**planned.cache)
    settings = planned.encoding
    tables = {}
    with Interruption() as interruption, settings.ray_actors() as actors:
        for name, card in planned.cards.items():
            tables[name] = cache.table(
                card,
                items,
                encoder_factory=partial(
                    _built,
                    card,
                    name,
                    settings=settings,
                    device=device if actors is None else None,  # an actor has its own
                    allow_random_weights=planned.allow_random_weights,
                ),
                batch_size=settings.batch_size,
                workers=settings.workers,
                progress=partial(progress, name) if progress else None,
                report=partial(report, name) if report else None,
                stop=lambda: interruption.requested,
                actors=actors,
            )
            if interruption.requested:  # while there was nothing to encode
                raise Interrupted("stopped: what is encoded is kept; the same command goes on")
    return tables


def check_encoders(planned: Plan) -> None:
    """Say at once, before data is read, that an encoder's weights can't be had.

    A card of which the cache holds vectors may need none: ``embed`` finds out.

    Raises:
        EncoderError: As for ``check_at_hand``.
    """
    cache = EmbeddingCache(**planned.cache)
    for name, card in planned.cards.items():
        if not card.fitted and not cache.holds(card):
            check_at_hand(card, key=f"encoders.{name}")


def inspect(planned: Plan) -> Inspection:
    """Look at all a training needs beside its recipe: both tables, and the encoders' weights.

    Raises:
        RecipeError: With every problem that was found.
    """
    problems, found = [], None
    try:
        found = planned.inspect_data()
    except RecipeError as error:
        problems += error.problems
    try:
        check_encoders(planned)
    except EncoderError as error:
        problems.append(str(error))
    if problems or found is None:
        raise RecipeError(problems)
    return found


def _built(
    card: EncoderCard,
    name: str,
    *,
    settings: EncodingSettings,
    device: str | None,
    allow_random_weights: bool,
) -> Encoder:
    """The encoder, on a device of the process that makes it: this one or an actor's."""
    check_at_hand(card, key=f"encoders.{name}")
    return card.build(
        device=device or settings.resolved_device(),
        batch_tokens=settings.batch_tokens,
        allow_random_weights=allow_random_weights,
    )


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


def encoder_vectors(
    planned: Plan, items: ItemTable, *, modality: str, progress: EmbedProgress | None = None
) -> NDArray[np.float32]:
    """[I+1, D_m] one encoder's vectors, rows of zeros where an item has none.

    Raises:
        RunError: The recipe has no such modality.
    """
    if modality not in planned.cards:
        raise RunError(
            f"{planned.recipe.name} has no encoder for {modality}; it has "
            f"{', '.join(planned.cards) or 'none'}"
        )
    only = replace(planned, cards={modality: planned.cards[modality]})
    table = embed(only, items, progress=progress)[modality]
    return np.asarray(table.vectors[np.arange(len(items) + 1)], dtype=np.float32)


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
