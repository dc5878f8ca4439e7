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
from typing import Any, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mmkd.data import ItemTable
from mmkd.embeddings.cluster import RayActors
from mmkd.embeddings.encode import EmbeddingRun, RunReport
from mmkd.embeddings.index import NeighbourIndex, index_of
from mmkd.embeddings.index_kinds import EXACT_BELOW, kind_problems
from mmkd.embeddings.inputs import FileKeys, inputs_of, work_left
from mmkd.embeddings.remote import RemoteCache, default_mirror, is_url, url_problems
from mmkd.embeddings.shards import FAILED, OK, ShardStore, StoreContents, StoredDtype
from mmkd.embeddings.stores import (
    CacheEntry,
    describe_store,
    list_stores,
    read_manifest,
    store_folder,
    table_folder,
)
from mmkd.embeddings.table import EmbeddingTable, new_table
from mmkd.encoders import Encoder, EncoderCard
from mmkd.errors import CacheError, at_least, checked

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

        >>> import tempfile
        >>> from mmkd import EmbeddingCache, EncoderCard, ItemTable
        >>> items = ItemTable(
        ...     ids=["", "A1", "B7", "C3"],
        ...     titles=["", "Teapot", "Cup", "Spade"],
        ...     text=[None, "A red teapot", "A red teacup", None],
        ...     image_path=[None] * 4,
        ...     attributes=[[], [], [], []],
        ... )
        >>> card = EncoderCard(name="words", modality="text", kind="hashed_text")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = EmbeddingCache(folder)
        ...     table = cache.table(card, items)
        ...     rows, cosines = cache.neighbours(table, [items.row("A1")], k=1)
        ...     print(table.dim, table.present, [items.titles[row] for row in rows[0]])
        ...     print(cache.absent(table)[0])
        256 [False  True  True False] ['Cup']
        AbsentItem(row=3, item_id='C3', status='missing', reason='no text')

    Args:
        folder: Where the cache lives, made when the first vector is written; by default
            `default_cache_folder`. The address of an object store, such as
            ``s3://bucket/prefix``, is read and written through a mirror (`mmkd.embeddings.remote`).
        mirror: The mirror's folder, of which each machine has its own; by default one below
            ``~/.cache/mmkd``.
        shard_size: Inputs encoded between two commits: what a killed run loses at most.
        retry_failed: Whether inputs that failed in an earlier run are tried again.
        exact_below: Number of vectors from which on neighbours are approximate.
        dtype: Precision that vectors are stored in; they are float32 when read.
        index: FAISS factory string of the neighbours' index, such as ``IVF1024,PQ48x8``; by default
            by the number of vectors (`mmkd.embeddings.index_kinds`).

    Raises:
        ValueError: An option is out of range; a line for each.
    """

    @checked
    def __init__(
        self,
        folder: str | Path | None = None,  # text first: of an address Path takes a slash away
        *,
        shard_size: int = 1024,
        retry_failed: bool = False,
        exact_below: int = EXACT_BELOW,
        dtype: StoredDtype = "float32",
        index: str | None = None,
        mirror: Path | str | None = None,
    ) -> None:
        place = default_cache_folder() if folder is None else folder
        self._remote_url = str(place) if is_url(place) else None
        self.folder = Path(mirror or default_mirror(str(place))) if is_url(place) else Path(place)
        self._dtype = dtype
        self._kind = index
        self._shard_size = shard_size
        self._retry_failed = retry_failed
        self._exact_below = exact_below
        self._last_index: tuple[EmbeddingTable, NeighbourIndex] | None = None

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each option that is out of range."""
        problems = at_least(1, shard_size=options.get("shard_size"))
        known = get_args(StoredDtype)
        if (dtype := options.get("dtype", known[0])) not in known:
            problems.append(
                f"dtype: got {dtype!r}, which cannot be stored; use {' or '.join(known)}"
            )
        if (index := options.get("index")) is not None:
            problems += kind_problems(index)
        place = options.get("folder")
        if is_url(place := default_cache_folder() if place is None else place):
            problems += url_problems(str(place))
        elif options.get("mirror") is not None:
            problems.append(
                f"mirror: got {options['mirror']} for a cache in a folder, which needs none; "
                "leave it out, or give folder such as s3://bucket/prefix"
            )
        return problems

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
        actors: RayActors | None = None,
    ) -> EmbeddingTable:
        """The catalogue's vectors; encodes what the cache lacks.

        Any number of processes may do so for the same catalogue at once, and share the work.

        An encoder that is fitted on the catalogue (``card.fitted``) is fitted and run again over
        everything whenever any input changes.

        Args:
            card: The encoder's card.
            items: The catalogue.
            encoder_factory: Makes the encoder; called only if something has to be encoded. By
                default what the card describes, on the CPU.
            batch_size: Inputs through the model at once.
            workers: Processes that decode pictures ahead of the encoder; None starts some where
                there is much to do, 0 decodes in this process.
            progress: Called with (done, total) inputs while encoding, those of other processes
                included.
            report: Called with what this process did, if it encoded anything.
            stop: Asked after each batch; if true, what is encoded is committed and the run ends.
            actors: Encode in Ray's actors and not in this process; ``encoder_factory`` is then
                called in each of them.

        Returns:
            The table; `absent` names the items it has no vector for.

        Raises:
            EmbeddingInterrupted: ``stop`` said so.
            CacheError: No item has a vector, the encoder fails on everything, or the folder
                cannot be read or written or is of a newer format.
        """
        if not isinstance(card, EncoderCard):
            raise CacheError(
                f"card: got {type(card).__name__}, wanted an EncoderCard, which says what the "
                "vectors are; EncoderCard.of(encoder, name=..., identity=...) makes one"
            )
        factory = encoder_factory or card.build
        if actors is None:
            factory = functools.cache(factory)
        files = FileKeys(self.folder / "files.parquet")
        retry = self._retry_failed
        inputs: pl.DataFrame | None = None
        for rounds_left in reversed(range(_ROUNDS)):
            if inputs is None or card.modality == "image":  # files may have changed
                inputs = inputs_of(card, items, files)
            store = ShardStore(store_folder(self.folder, card, inputs, dtype=self._dtype))
            if self._remote is not None:
                self._remote.sync(store, stop)
            contents = store.contents()
            statuses = item_statuses(inputs, contents, retry_failed=retry)
            if statuses["status"].null_count() and rounds_left:
                store.clean()
                contents = store.contents()
                statuses = item_statuses(inputs, contents, retry_failed=retry)
                if work := work_left(card, items, statuses):  # others may have done it by now
                    texts = _texts_to_fit(items, inputs) if card.fitted else []
                    ready = functools.partial(
                        _ready_encoder, factory, card, texts, len(items), contents.dim
                    )
                    run = EmbeddingRun(
                        store,
                        contents,
                        shard_size=self._shard_size,
                        batch_size=batch_size,
                        workers=workers,
                        named=card.reads != "content",
                        progress=progress,
                        stop=stop,
                        committed=self._sending(store),
                    )
                    if actors is None:
                        done = run.encode(functools.partial(_described, ready, card, store), work)
                    else:
                        with store.locked():
                            describe_store(store.folder, card)
                        done = run.encode_on(actors, ready, work)
                    if report is not None:
                        report(done)
                del statuses, work  # large, and made anew in the next round
                retry = False
                continue
            places = statuses.filter(pl.col("status") == OK)
            opened, damaged = store.sound(contents.shards, set(places["shard"].unique()))
            if not damaged:
                with suppress(CacheError, OSError):  # reading needs no description
                    describe_store(store.folder, card)
                # what could not be read in any round has failed; nothing of it is recorded
                unread = pl.col("status").is_null()
                reason = pl.lit("its file could not be read or kept changing; run again")
                statuses = statuses.with_columns(
                    reason=pl.when(unread).then(reason).otherwise("reason"),
                    status=pl.col("status").fill_null(FAILED),
                )
                return new_table(card, store.folder, statuses, opened)
            _logger.warning("%s: %d damaged shards are encoded again", store.folder, len(damaged))
            store.discard(damaged)
        raise CacheError(f"{store.folder}: shards stay damaged; check the disk")

    def beside(
        self,
        card: EncoderCard,
        items: ItemTable,
        *,
        catalogue: ItemTable,
        encoder_factory: Callable[[], Encoder] | None = None,
        batch_size: int = 64,
    ) -> EmbeddingTable:
        """Vectors of items by an encoder that is fitted on a catalogue without them.

        Its vectors in a larger catalogue would be others. It is fitted anew, on the same texts in
        the same order and so to the same end, and what it gives is not stored.

        Args:
            card: Of a kind that is fitted.
            items: The items to encode.
            catalogue: What it is fitted on.
            encoder_factory: As for `table`.
            batch_size: Inputs at once.

        Returns:
            A table of `items`, possibly without any vector.
        """
        files = FileKeys(self.folder / "files.parquet")
        encoder = (encoder_factory or card.build)()
        fit = getattr(encoder, "fit", None)
        if not card.fitted or fit is None:
            raise CacheError(f"card {card.name}: kind {card.kind} is not fitted; use table()")
        fit(_texts_to_fit(catalogue, inputs_of(card, catalogue, files)))
        inputs = inputs_of(card, items, files).drop_nulls("key")
        rows = inputs["row"].to_numpy()
        vectors = np.zeros((len(items) + 1, encoder.dim), np.float32)
        if len(rows):
            texts = [items.text[row] for row in rows]
            vectors[rows] = np.asarray(encoder.encode(texts, batch_size=batch_size))
        present = np.zeros(len(items) + 1, np.bool_)
        present[rows] = True
        return EmbeddingTable(vectors, present, card.name, card.modality, "")

    def holds(self, card: EncoderCard) -> bool:
        """Whether there are vectors of a card that isn't fitted, for whatever catalogue.

        Raises:
            CacheError: They are of a newer format.
        """
        folder = store_folder(self.folder, card, pl.DataFrame(), dtype=self._dtype)
        if ShardStore(folder).shards():
            return True
        return self._remote is not None and self._remote.holds(folder.name)

    def neighbours(
        self, table: EmbeddingTable, rows: Sequence[int] | NDArray[np.int64], k: int
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
            folder = table_folder(self.folder, table.key)
            index = index_of(table, folder, kind=self._kind, exact_below=self._exact_below)
            self._last_index = table, index
        return self._last_index[1].search(np.asarray(rows), k)

    def absent(self, table: EmbeddingTable) -> list[AbsentItem]:
        """The items of a table of this cache that have no vector, and why.

        Raises:
            CacheError: This cache does not hold the table.
        """
        folder = table_folder(self.folder, table.key)
        statuses = read_manifest(folder / "manifest.parquet") if folder else None
        if statuses is None:
            raise CacheError(f"table {table.key} is not in {self.folder}; open it with table()")
        lost = statuses.filter(pl.col("status") != OK)
        return [
            AbsentItem(*row) for row in lost.select("row", "item_id", "status", "reason").rows()
        ]

    def entries(self) -> list[CacheEntry]:
        """The encoders' stores in this cache, or in its mirror, the last used first."""
        return list_stores(self.folder)

    @functools.cached_property
    def _remote(self) -> RemoteCache | None:
        return None if self._remote_url is None else RemoteCache(self._remote_url, self.folder)

    def _sending(self, store: ShardStore) -> Callable[[int], None] | None:
        """Sends each shard once it is committed; a network that breaks does not stop the encoder.

        What could not be sent then is so when all is encoded.
        """
        if (remote := self._remote) is None:
            return None
        broken = False

        def send(number: int) -> None:
            nonlocal broken
            if not broken:
                try:
                    remote.send(store, number)
                except CacheError as error:
                    broken = True
                    _logger.warning("%s", error)

        return send


def default_cache_folder() -> Path | str:
    """``$MMKD_CACHE``, or ``cache`` in the working folder; an object store's address stays text."""
    place = os.environ.get("MMKD_CACHE") or "cache"
    return place if is_url(place) else Path(place)


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


def _texts_to_fit(items: ItemTable, inputs: pl.DataFrame) -> list[str | None]:
    rows = inputs.drop_nulls("key").sort("key")["row"]
    return [items.text[row] for row in rows]


def _ready_encoder(
    factory: Callable[[], Encoder],
    card: EncoderCard,
    texts: Sequence[str | None],
    item_count: int,
    dim: int | None,
) -> Encoder:
    """Makes the encoder, checks that it is the card's, and fits it on the texts if need be.

    It is fitted on the texts in the order of their keys: the catalogue's order changes nothing.

    Raises:
        CacheError: It is of another modality or width, or cannot be fitted.
    """
    encoder = factory()
    if encoder.modality != card.modality:
        raise CacheError(
            f"card {card.name} is of modality {card.modality}, its encoder of {encoder.modality}; "
            "correct the encoder_factory"
        )
    check = getattr(encoder, "check_catalogue", None)
    if card.reads == "row" and check is not None:
        check(item_count)  # rows that follow the catalogue's must be as many
    if card.fitted:
        fit = getattr(encoder, "fit", None)
        if fit is None or card.modality != "text":
            raise CacheError(
                f"card {card.name}: kind {card.kind} is fitted on the catalogue, which the cache "
                "can do for a text encoder with a `fit` method only"
            )
        fit(texts)
    if dim is not None and encoder.dim != dim:
        raise CacheError(
            f"card {card.name}: the encoder gives width {encoder.dim}, its stored vectors have "
            f"{dim}; raise the `version` of kind {card.kind}, whose code must have changed"
        )
    return encoder


def _described(ready: Callable[[], Encoder], card: EncoderCard, store: ShardStore) -> Encoder:
    """The encoder; its store says from now on which it is of."""
    encoder = ready()
    with store.locked():
        describe_store(store.folder, card)
    return encoder
