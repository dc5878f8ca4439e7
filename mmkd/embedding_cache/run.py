"""An embedding run: what a catalogue lacks, encoded chunk by chunk by as many processes as join.

From a catalogue's work and a store to committed shards.
"""

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mmkd.embedding_cache.atomic import writer_lock
from mmkd.embedding_cache.chunks import Chunk, Committed, claimed, cut
from mmkd.embedding_cache.encoding import Stopwatch, encode_chunk
from mmkd.embedding_cache.errors import EmbeddingInterrupted
from mmkd.embedding_cache.guarded import GuardedEncoder
from mmkd.embedding_cache.pictures import PictureLoader, Work
from mmkd.embedding_cache.shards import ShardStore, StoreContents
from mmkd.encoders.base import Encoder

_POLL_S = 0.2


@dataclass(frozen=True)
class RunReport:
    """What one process did.

    Attributes:
        encoded: Inputs it encoded.
        by_others: Inputs that other processes encoded meanwhile.
        seconds: From the first input to the last commit.
        waited: Share of the encoder's time, 0..1, in which it waited for inputs.
    """

    encoded: int
    by_others: int
    seconds: float
    waited: float

    @property
    def per_second(self) -> float:
        """Inputs a second of this process."""
        return self.encoded / self.seconds if self.seconds else 0.0


class EmbeddingRun:
    """Encodes work into a store, beside any number of processes that do the same.

    Args:
        store: Where to.
        folder: Its folder.
        shard_size: Inputs a chunk.
        batch_size: Inputs through the model at once.
        workers: Processes that decode pictures; see `PictureLoader`.
        named: Whether the encoder knows items by name (``EncoderCard.reads``).
        progress: Called with (done, total) inputs, those of other processes included.
        stop: Asked after each batch. If true, what is encoded is committed and the run ends.
    """

    def __init__(
        self,
        store: ShardStore,
        folder: Path,
        *,
        shard_size: int,
        batch_size: int,
        workers: int | None,
        named: bool,
        progress: Callable[[int, int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> None:
        self._store = store
        self._folder = folder
        self._shard_size = shard_size
        self._batch_size = batch_size
        self._workers = workers
        self._named = named
        self._progress = progress or (lambda done, total: None)
        self._stop = stop or (lambda: False)
        self._watch = Stopwatch()
        self._encoded = self._by_others = 0

    def encode(
        self, ready: Callable[[], Encoder], work: Sequence[Work], contents: StoreContents
    ) -> RunReport:
        """Encodes the work; returns when all of it is committed, by this process or another.

        Args:
            ready: Makes the encoder, fitted if it has to be; called once, when this process has
                claimed something to encode.
            work: What to encode, each key once.
            contents: Of the store, as the work was made out from it.

        Raises:
            EmbeddingInterrupted: ``stop`` said so; what was encoded is committed.
            CacheError: The encoder itself is at fault, or the folder cannot be written.
        """
        committed = Committed(self._store, contents.shards)
        chunks = cut(work, size=self._shard_size)
        began = time.perf_counter()
        self._total, self._nothing_stored = len(work), contents.dim is None
        with ExitStack() as stack:
            tools = functools.cache(lambda: self._tools(ready(), work, stack))
            while chunks:
                left = [chunk for chunk in chunks if not self._done(chunk, committed, tools)]
                if len(left) == len(chunks):
                    time.sleep(_POLL_S)  # others have the rest; what a dead one left is taken over
                chunks = left
        seconds = time.perf_counter() - began
        return RunReport(self._encoded, self._by_others, seconds, self._watch.waited)

    def _tools(
        self, encoder: Encoder, work: Sequence[Work], stack: ExitStack
    ) -> tuple[GuardedEncoder, PictureLoader | None]:
        """The encoder, and for pictures what loads them."""
        guarded = GuardedEncoder(encoder, batch_size=self._batch_size, named=self._named)
        if isinstance(work[0].source, str):
            return guarded, None
        loader = PictureLoader(
            getattr(encoder, "prepare", None),
            workers=self._workers,
            ahead=2 * self._batch_size,
            count=len(work),
        )
        return guarded, stack.enter_context(loader)

    def _done(
        self,
        chunk: Chunk,
        committed: Committed,
        tools: Callable[[], tuple[GuardedEncoder, PictureLoader | None]],
    ) -> bool:
        """Whether a chunk is committed now; False where another process is at it."""
        self._obey()
        if not committed.left(chunk):
            self._of_others(len(chunk.work))
            return True
        with claimed(self._folder, chunk) as mine:
            if not mine:
                return False
            left = committed.left(chunk)  # asked again: now nobody else can commit it
            self._of_others(len(chunk.work) - len(left))
            if left:
                self._encode(left, committed, *tools())
        self._obey()
        return True

    def _encode(
        self,
        work: Sequence[Work],
        committed: Committed,
        encoder: GuardedEncoder,
        loader: PictureLoader | None,
    ) -> None:
        before = self._encoded + self._by_others
        outcomes = encode_chunk(
            encoder,
            work,
            loader,
            batch_size=self._batch_size,
            watch=self._watch,
            advance=lambda done: self._progress(before + done, self._total),
            stop=self._stop,
        )
        encoder.require_a_vector(nothing_stored=self._nothing_stored)
        if outcomes:
            with writer_lock(self._folder):
                committed.own(self._store.commit(outcomes))
        self._encoded += len(outcomes)
        self._nothing_stored &= all(outcome.vector is None for outcome in outcomes)

    def _of_others(self, count: int) -> None:
        if count:
            self._by_others += count
            self._progress(self._encoded + self._by_others, self._total)

    def _obey(self) -> None:
        if self._stop():
            raise EmbeddingInterrupted(self._encoded + self._by_others, self._total)
