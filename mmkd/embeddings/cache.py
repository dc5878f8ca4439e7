"""The embedding cache: an encoder card and a catalogue in, one vector per item out.

What was encoded once is read back; only content that no run has seen goes through the encoder.
See ``cache/README.md`` for the files.
"""

import functools
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.data import ItemTable
from mmkd.embeddings.encode import EmbeddingRun, RunReport
from mmkd.embeddings.inputs import FileKeys, Work, inputs_of, item_names
from mmkd.embeddings.neighbours import EXACT_BELOW, NeighbourIndex, check_factory, index_of
from mmkd.embeddings.shards import (
    FAILED,
    OK,
    ShardStore,
    StoreContents,
    StoredDtype,
    read_catalogue_manifest,
    writing,
)
from mmkd.embeddings.stores import (
    CacheEntry,
    describe_store,
    list_stores,
    store_folder,
    table_folder,
)
from mmkd.embeddings.table import EmbeddingTable, new_table, open_table
from mmkd.encoders import Encoder, EncoderCard
from mmkd.errors import CacheError
from mmkd.files import writer_lock

_logger = logging.getLogger(__name__)
# files may change while they are read, and shards may turn out damaged: look again, but not forever
_ROUNDS = 5


@dataclass(frozen=True)
class AbsentItem:
    """An item without a vector.

    Attributes:
        row: Its row in the catalogue.
        item_id: Its external id.
        status: ``"missing"`` (no input) or ``"failed"`` (an input that gives no vector).
        reason: Why, for a person.
    """

    row: int
    item_id: str
    status: str
    reason: str


class EmbeddingCache:
    """Vectors of frozen encoders, kept on disk by the content they were made from.

    Any number of processes may share a folder: those that encode for one store share its work
    (`mmkd.embeddings.chunks`), others read what is complete.

    Args:
        folder: Where the cache lives; made when the first vector is written.
        shard_size: Inputs encoded between two commits: what a killed run loses at most.
        retry_failed: Whether inputs that failed in an earlier run are tried again.
        exact_below: Number of vectors from which on neighbours are approximate.
        dtype: Precision that vectors are stored in; they are float32 when read.
        index: FAISS factory string of the neighbours' index, such as ``IVF1024,PQ48x8``; by default
            by the number of vectors (`mmkd.embeddings.neighbours`).
    """

    def __init__(
        self,
        folder: Path,
        *,
        shard_size: int = 1024,
        retry_failed: bool = False,
        exact_below: int = EXACT_BELOW,
        dtype: StoredDtype = "float32",
        index: str | None = None,
    ) -> None:
        if shard_size < 1:
            raise CacheError(f"shard_size {shard_size} is not positive; use 1 or more")
        if dtype not in get_args(StoredDtype):
            raise CacheError(f"dtype {dtype!r} cannot be stored; use float32 or float16")
        if index is not None:
            check_factory(index)
        self.folder = Path(folder)
        self._dtype = dtype
        self._kind = index
        self._shard_size = shard_size
        self._retry_failed = retry_failed
        self._exact_below = exact_below
        self._last_index: tuple[EmbeddingTable, NeighbourIndex] | None = None

    def table(
        self,
        card: EncoderCard,
        items: ItemTable,
        *,
        encoder_factory: Callable[[], Encoder] | None = None,
        batch_size: int = 64,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        report: Callable[[RunReport], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> EmbeddingTable:
        """The catalogue's vectors; encodes what the cache lacks.

        Any number of processes may do so for the same catalogue at once, and share the work.

        An encoder that is fitted on the catalogue (``card.fitted``) is fitted and run again over
        everything whenever any input changes.

        Args:
            card: The encoder's card.
            items: The catalogue.
            encoder_factory: Makes the encoder; called only if something has to be encoded. By
                default `card.build` on the CPU.
            batch_size: Inputs through the model at once.
            workers: Processes that decode pictures ahead of the encoder; None starts some where
                there is much to do, 0 decodes in this process.
            progress: Called with (done, total) inputs while encoding, those of other processes
                included.
            report: Called with what this process did, if it encoded anything.
            stop: Asked after each batch; if true, what is encoded is committed and the run ends.

        Returns:
            The table; `absent` names the items it has no vector for.

        Raises:
            EmbeddingInterrupted: ``stop`` said so.
            CacheError: No item has a vector, the encoder fails on everything, or the folder
                cannot be read or written or is of a newer format.
        """
        factory = functools.cache(encoder_factory or card.build)
        files = FileKeys(self.folder / "files.parquet")
        retry = self._retry_failed
        for rounds_left in reversed(range(_ROUNDS)):
            inputs = inputs_of(card, items, files)
            folder = store_folder(self.folder, card, inputs, dtype=self._dtype)
            store = ShardStore(folder)
            contents = store.contents()
            statuses = item_statuses(inputs, contents, retry_failed=retry)
            if statuses["status"].null_count() and rounds_left:
                run = EmbeddingRun(
                    store,
                    folder,
                    shard_size=self._shard_size,
                    batch_size=batch_size,
                    workers=workers,
                    named=card.reads != "content",
                    progress=progress,
                    stop=stop,
                )
                done = _encode_missing(run, factory, card, items, inputs, folder, retry=retry)
                if report is not None and done is not None:
                    report(done)
                retry = False
                continue
            places = statuses.filter(pl.col("status") == OK)
            opened, damaged = store.open(contents.shards, set(places["shard"].unique()))
            if not damaged:
                with suppress(CacheError, OSError):  # reading needs no description
                    describe_store(folder, card)
                return new_table(card, folder, close_unread(statuses), opened)
            _logger.warning("%s: %d damaged shards are encoded again", folder, len(damaged))
            with writing(folder), writer_lock(folder):
                store.discard(damaged)
        raise CacheError(f"{folder}: shards stay damaged; check the disk")

    def open(self, key: str) -> EmbeddingTable:
        """Opens a table that was complete before, by its key; reads no vector.

        Args:
            key: `EmbeddingTable.key`.

        Returns:
            The table.

        Raises:
            CacheError: This cache has no such table, it is of a newer version, or its shards were
                removed or damaged since.
        """
        return open_table(self.folder, key)

    def neighbours(
        self, table: EmbeddingTable, rows: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The items most similar to items, by cosine.

        Args:
            table: Vectors, of this cache or any other; the index of a table of this cache is kept.
            rows: ``[n]`` item rows that have a vector.
            k: How many neighbours.

        Returns:
            Rows ``[n, k]`` int64 by falling cosine, the item itself left out and absent items
            never among them, and the cosines ``[n, k]`` float32.

        Raises:
            CacheError: A row is out of range or has no vector, or fewer than k others have one.
        """
        if self._last_index is None or self._last_index[0] is not table:
            self._last_index = table, self._index(table)
        return self._last_index[1].search(rows, k)

    def absent(self, table: EmbeddingTable) -> list[AbsentItem]:
        """The items of a table of this cache that have no vector, and why.

        Raises:
            CacheError: This cache does not hold the table.
        """
        folder = table_folder(self.folder, table.key)
        statuses = read_catalogue_manifest(folder / "manifest.parquet") if folder else None
        if statuses is None:
            raise CacheError(f"table {table.key} is not in {self.folder}; open it with table()")
        lost = statuses.filter(pl.col("status") != OK)
        return [
            AbsentItem(*row) for row in lost.select("row", "item_id", "status", "reason").rows()
        ]

    def entries(self) -> list[CacheEntry]:
        """The encoders' stores in this cache, the last used first."""
        return list_stores(self.folder)

    def _index(self, table: EmbeddingTable) -> NeighbourIndex:
        folder = table_folder(self.folder, table.key)
        return index_of(table, folder, kind=self._kind, exact_below=self._exact_below)


def _encode_missing(
    run: EmbeddingRun,
    factory: Callable[[], Encoder],
    card: EncoderCard,
    items: ItemTable,
    inputs: pl.DataFrame,
    folder: Path,
    *,
    retry: bool,
) -> RunReport | None:
    """Encodes what the store lacks, after tidying it; None if others had encoded it by then."""
    store = ShardStore(folder)
    with writing(folder), writer_lock(folder):
        store.clean()
    contents = store.contents()
    work = work_left(card, items, item_statuses(inputs, contents, retry_failed=retry))
    if not work:
        return None

    def ready() -> Encoder:
        encoder = ready_encoder(factory(), card, items, inputs, dim=contents.dim)
        with writing(folder), writer_lock(folder):
            describe_store(folder, card)
        return encoder

    return run.encode(ready, work, contents)


def default_cache_folder() -> Path:
    """``$MMKD_CACHE``, or ``cache`` in the working folder."""
    return Path(os.environ.get("MMKD_CACHE") or "cache")


def item_statuses(
    inputs: pl.DataFrame, contents: StoreContents, *, retry_failed: bool
) -> pl.DataFrame:
    """Joins a catalogue's inputs with what a store holds.

    Args:
        inputs: A row per item (`mmkd.embeddings.inputs`).
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
