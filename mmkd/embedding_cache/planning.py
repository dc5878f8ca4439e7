"""What a catalogue needs from a store: each item's status, and the inputs left to encode."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from mmkd.data import ItemTable
from mmkd.embedding_cache.errors import CacheError
from mmkd.embedding_cache.inputs import item_names
from mmkd.embedding_cache.manifest import FAILED, OK
from mmkd.embedding_cache.pictures import Work
from mmkd.embedding_cache.shards import StoreContents
from mmkd.encoders import Encoder, EncoderCard


def item_statuses(
    inputs: pl.DataFrame, contents: StoreContents, *, retry_failed: bool
) -> pl.DataFrame:
    """Joins a catalogue's inputs with what a store holds.

    Args:
        inputs: A row per item (`mmkd.embedding_cache.inputs`).
        contents: The store's records.
        retry_failed: Whether an input that failed counts as not tried.

    Returns:
        A row per item, in the catalogue's order: ``row``, ``item_id``, ``key``, ``status`` (null
        where the input has yet to be encoded), ``reason``, ``shard``, ``shard_row``.
    """
    records = contents.records.drop("item_id").rename({"row": "shard_row"})
    if retry_failed:
        records = records.filter(pl.col("status") == OK)
    joined = inputs.join(records, on="key", how="left", maintain_order="left")
    return joined.select(
        "row",
        "item_id",
        "key",
        pl.coalesce("absent", "status").alias("status"),
        pl.coalesce("absent_reason", "reason").alias("reason"),
        "shard",
        "shard_row",
    )


def work_left(card: EncoderCard, items: ItemTable, statuses: pl.DataFrame) -> list[Work]:
    """Inputs to encode: of items with the same content the first."""
    left = statuses.filter(pl.col("status").is_null()).unique(
        "key", keep="first", maintain_order=True
    )
    sources: Sequence[str | Path | None] = (
        item_names(items, reads=card.reads)
        if card.reads != "content"
        else items.text
        if card.modality == "text"
        else items.image_path
    )
    work = []
    for key, item_id, row in left.select("key", "item_id", "row").iter_rows():
        source = sources[row]
        if source is not None:  # always so: an item without a source has a status
            work.append(Work(key, item_id, source))
    return work


def close_unread(statuses: pl.DataFrame) -> pl.DataFrame:
    """Counts as failed what could not be read in any round; nothing of it is recorded."""
    left = pl.col("status").is_null()
    reason = pl.lit("its file could not be read or kept changing; run again")
    return statuses.with_columns(
        reason=pl.when(left).then(reason).otherwise(pl.col("reason")),
        status=pl.col("status").fill_null(FAILED),
    )


def ready_encoder(
    encoder: Encoder, card: EncoderCard, items: ItemTable, inputs: pl.DataFrame, *, dim: int | None
) -> Encoder:
    """Checks that an encoder is the card's and fits it on the catalogue if the card says so.

    Args:
        encoder: The encoder.
        card: The card that its vectors are filed under.
        items: The catalogue.
        inputs: Its inputs' keys.
        dim: Width of the vectors already stored, if any.

    Returns:
        The encoder, fitted. It is given the texts in the order of their keys, so that the
        catalogue's order changes nothing.

    Raises:
        CacheError: It is of another modality or width, or cannot be fitted.
    """
    if encoder.modality != card.modality:
        raise CacheError(
            f"card {card.name} is of modality {card.modality}, its encoder of {encoder.modality}; "
            "correct the encoder_factory"
        )
    check = getattr(encoder, "check_catalogue", None)
    if card.reads == "row" and check is not None:
        check(len(items))  # rows that follow the catalogue's must be as many
    if card.fitted:
        fit = getattr(encoder, "fit", None)
        if fit is None or card.modality != "text":
            raise CacheError(
                f"card {card.name}: kind {card.kind} is fitted on the catalogue, which the cache "
                "can do for a text encoder with a `fit` method only"
            )
        rows = inputs.drop_nulls("key").sort("key")["row"]
        fit([items.text[row] for row in rows])
    if dim is not None and encoder.dim != dim:
        raise CacheError(
            f"card {card.name}: the encoder gives width {encoder.dim}, its stored vectors have "
            f"{dim}; raise the `version` of kind {card.kind}, whose code must have changed"
        )
    return encoder
