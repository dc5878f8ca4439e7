"""An embedding run: work in, committed shards out, beside any number of processes at the same.

From the inputs that a store lacks to shards in it (`mmkd.embeddings.shards`), a chunk at a time
(`mmkd.embeddings.chunks`), by an encoder in this process or by actors (`mmkd.embeddings.cluster`).
A failure costs the one input it belongs to; one of the encoder itself stops the run
(`mmkd.embeddings.guard`). `EncodingSettings` is a recipe's ``embed`` section: what changes a run
but no vector.
"""

import functools
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mmkd.embeddings.chunks import Chunk, claimed, cut
from mmkd.embeddings.cluster import RayActors
from mmkd.embeddings.guard import Guarded, GuardedEncoder, guarded, no_vector
from mmkd.embeddings.inputs import Work, WorkList
from mmkd.embeddings.shards import Outcome, ShardStore, StoreContents
from mmkd.encoders import Encoder
from mmkd.errors import EmbeddingInterrupted, at_least, checked, one_of
from mmkd.threads import thread_count, use_threads

Engine = Literal["processes", "ray"]
_POLL_S = 0.2


class EncodingSettings:
    """How encoders are run.

    Args:
        device: Such as ``cpu`` or ``cuda:1``; ``auto`` is this process's GPU, or else the CPU;
            ``spread`` lays a language model over all GPUs of one process.
        batch_size: Inputs through a model at once.
        batch_tokens: Most tokens, padding counted, through a text model at once; None counts texts
            only. Short texts then go many at a time, long ones few.
        workers: Processes that decode pictures ahead of the model; None starts some where there is
            much to do, 0 decodes in the process itself.
        engine: ``processes`` encodes in this process, beside any others that share the cache's
            folder; ``ray`` in actors, on this machine or on a cluster (`RayActors`).
        actors: How many, with ``ray``; None has one for each GPU, or else one a machine.

    Raises:
        ValueError: A number is out of range; a line for each.
    """

    @checked
    def __init__(
        self,
        *,
        device: str = "auto",
        batch_size: int = 64,
        batch_tokens: int | None = None,
        workers: int | None = None,
        engine: Engine = "processes",
        actors: int | None = None,
    ) -> None:
        self.device = device
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.workers = workers
        self.engine = engine
        self.actors = actors

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each option that is out of range."""
        counted = {name: options.get(name) for name in ("batch_size", "batch_tokens")}
        problems = at_least(1, **counted) + at_least(0, workers=options.get("workers"))
        actors, device = options.get("actors"), options.get("device", "auto")
        problems += one_of(get_args(Engine), engine=options.get("engine"))
        problems += at_least(1, actors=actors)
        if options.get("engine") != "ray":
            if actors is not None:
                problems.append(
                    f"actors: got {actors} without Ray; use engine: ray, or leave it out"
                )
        elif device not in ("auto", "cpu", "cuda"):
            problems.append(
                f"device: got {device}, but each of Ray's actors is given a GPU of its own; use "
                "auto or cpu, or engine: processes"
            )
        return problems

    def ray_actors(self) -> AbstractContextManager[RayActors | None]:
        """The actors of ``engine: ray``, else None."""
        if self.engine != "ray":
            return nullcontext()
        return RayActors(self.actors, device=self.device)

    def resolved_device(self) -> str:
        """``device`` as a card's encoder takes it, definite for this process.

        Of the processes that a launcher starts on one machine, each takes the GPU of its number.
        """
        if self.device == "spread":
            return "auto"
        if self.device not in ("auto", "cuda"):
            return self.device
        import torch

        if self.device == "auto" and not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(1, torch.cuda.device_count())}"


def share_cores() -> None:
    """Gives this process its share of the cores, where a launcher started several on this machine.

    Processes that each take every core run many times slower than one after the other.
    """
    use_threads(thread_count(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@dataclass(frozen=True)
class RunReport:
    """What one process did.

    Attributes:
        encoded: Inputs it encoded.
        by_others: Inputs that other processes encoded meanwhile.
        seconds: From the first input to the last commit.
        waited: Share of the encoder's time, 0..1, in which it waited for inputs.
        cut: Texts of those it encoded that were longer than the encoder takes; their ends are in no
            vector.
    """

    encoded: int
    by_others: int
    seconds: float
    waited: float
    cut: int = 0

    @property
    def per_second(self) -> float:
        """Inputs a second of this process."""
        return self.encoded / self.seconds if self.seconds else 0.0


class EmbeddingRun:
    """Encodes work into a store, beside any number of processes that do the same.

    Args:
        store: Where to.
        contents: Of the store, as the work was made out from it.
        shard_size: Inputs a chunk.
        batch_size: Inputs through the model at once.
        workers: Processes that decode pictures; see `PictureLoader`.
        named: Whether the encoder knows items by name (``EncoderCard.reads``).
        progress: Called with (done, total) inputs, those of other processes included.
        stop: Asked after each batch. If true, what is encoded is committed and the run ends.
        committed: Told the number of each shard that this run commits.
    """

    def __init__(
        self,
        store: ShardStore,
        contents: StoreContents,
        *,
        shard_size: int,
        batch_size: int,
        workers: int | None,
        named: bool,
        progress: Callable[[int, int], None] | None,
        stop: Callable[[], bool] | None,
        committed: Callable[[int], None] | None = None,
    ) -> None:
        self._store = store
        self._shards_seen = set(contents.shards)
        self._committed: set[str] = set()  # keys, by others since
        self._nothing_stored = contents.dim is None
        self._held: list[tuple[Chunk, Sequence[Outcome], Sequence[str]]] = []
        self._shard_size = shard_size
        self._batch_size = batch_size
        self._workers = workers
        self._named = named
        self._progress = progress or (lambda done, total: None)
        self._stop = stop or (lambda: False)
        self._told = committed or (lambda number: None)
        self._encoded = self._by_others = self._total = 0

    def encode(self, ready: Callable[[], Encoder], work: WorkList) -> RunReport:
        """Encodes the work; returns when all of it is committed, by this process or another.

        Args:
            ready: Makes the encoder, fitted if it has to be; called once, when this process has
                claimed something to encode.
            work: What to encode, each key once.

        Raises:
            EmbeddingInterrupted: ``stop`` said so; what was encoded is committed.
            CacheError: The encoder itself is at fault, or the folder cannot be written.
        """
        chunks = cut(work, size=self._shard_size)
        began = time.perf_counter()
        self._total, waited, texts_cut = len(work), 0.0, 0
        with ExitStack() as stack:

            @functools.cache
            def encoder() -> GuardedEncoder:
                return stack.enter_context(self._guarded(ready, work)())

            while chunks:
                left = [chunk for chunk in chunks if not self._done(chunk, encoder)]
                if len(left) == len(chunks):
                    time.sleep(_POLL_S)  # others have the rest; what a dead one left is taken over
                chunks = left
            self._record_held()
            if self._encoded:
                waited, texts_cut = encoder().waited, encoder().cut
        seconds = time.perf_counter() - began
        return RunReport(self._encoded, self._by_others, seconds, waited, texts_cut)

    def encode_on(
        self, actors: RayActors, ready: Callable[[], Encoder], work: WorkList
    ) -> RunReport:
        """As `encode`, by actors; chunks, batches and so vectors are the same.

        Args:
            actors: Each takes a chunk at a time.
            ready: Makes the encoder, in each actor; it is sent there.
            work: What to encode, each key once.

        Raises:
            EmbeddingInterrupted: ``stop`` said so; what was committed is kept.
            CacheError: As for `encode`, or an actor died too often.
        """
        chunks = deque(cut(work, size=self._shard_size))
        began = time.perf_counter()
        self._total = len(work)
        wait_s = encode_s = 0.0
        texts_cut = 0
        with actors.encoders(self._guarded(ready, work)) as crew, ExitStack() as claims:
            under_way: dict[str, tuple[Chunk, ExitStack]] = {}
            while chunks or under_way:
                self._obey()
                for _ in range(len(chunks)):
                    if not crew.free:
                        break
                    chunk, claim = chunks.popleft(), claims.enter_context(ExitStack())
                    if left := claim.enter_context(self._claim(chunk)):
                        crew.give(chunk.name, left)
                        under_way[chunk.name] = chunk, claim
                        continue
                    claim.close()
                    if left is None:
                        chunks.append(chunk)  # others are at it
                for name, found in crew.taken(timeout_s=_POLL_S):
                    chunk, claim = under_way.pop(name)
                    self._commit_or_hold(chunk, found.outcomes, found.doubt)
                    claim.close()
                    wait_s, encode_s = wait_s + found.wait_s, encode_s + found.encode_s
                    texts_cut += found.cut
                    self._progress(self._encoded + self._by_others, self._total)
            self._record_held()
        seconds = time.perf_counter() - began
        waited = wait_s / (wait_s + encode_s) if wait_s else 0.0
        return RunReport(self._encoded, self._by_others, seconds, waited, texts_cut)

    def _guarded(self, ready: Callable[[], Encoder], work: Sequence[Work]) -> Guarded:
        return functools.partial(
            guarded,
            ready,
            pictures=not isinstance(work[0].source, str),
            count=len(work),
            batch_size=self._batch_size,
            workers=self._workers,
            named=self._named,
        )

    def _done(self, chunk: Chunk, encoder: Callable[[], "GuardedEncoder"]) -> bool:
        """Whether a chunk is committed now, here or before; False where others are at it."""
        self._obey()
        with self._claim(chunk) as left:
            if left:
                outcomes: list[Outcome] = []
                for batch in encoder().outcomes(left):
                    outcomes += batch
                    self._progress(self._encoded + self._by_others + len(outcomes), self._total)
                    if self._stop():
                        break
                self._commit_or_hold(chunk, outcomes, encoder().doubt())
        self._obey()
        return left is not None

    @contextmanager
    def _claim(self, chunk: Chunk) -> Iterator[Sequence[Work] | None]:
        """What of a chunk is left for this run, and nobody else while the block lasts.

        Nothing where it is committed, None where others are at it.
        """
        if not self._left(chunk):
            self._count_others(len(chunk.work))
            yield ()
            return
        with claimed(self._store.folder, chunk) as mine:
            if not mine:
                yield None
                return
            left = self._left(chunk)  # asked again: now nobody else can commit it
            self._count_others(len(chunk.work) - len(left))
            yield left

    def _commit_or_hold(
        self, chunk: Chunk, outcomes: Sequence[Outcome], doubt: Sequence[str]
    ) -> None:
        """Commit a chunk; but hold one that failed whole while nothing shows that others do not."""
        if doubt and self._nothing_stored:
            self._held.append((chunk, outcomes, doubt))
        else:
            self._commit(outcomes)

    def _record_held(self) -> None:
        """Commit the chunks that failed whole, now that there is a vector of another.

        Raises:
            CacheError: There is none, here or of other processes.
        """
        if self._held and self._nothing_stored and self._store.contents().dim is None:
            raise no_vector([reason for *_, doubt in self._held for reason in doubt])
        while self._held:
            chunk, outcomes, _ = self._held[0]
            with self._claim(chunk) as left:
                if left:
                    keys = {one.key for one in left}
                    self._commit([outcome for outcome in outcomes if outcome.key in keys])
                    self._progress(self._encoded + self._by_others, self._total)
            if left is None:
                time.sleep(_POLL_S)  # others are at it
            else:
                self._held.pop(0)

    def _commit(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes:
            number = self._store.commit(outcomes)
            # its own shard need not be read: the chunk will not be asked for again
            self._shards_seen.add(number)
            self._told(number)
        self._encoded += len(outcomes)
        self._nothing_stored &= all(outcome.vector is None for outcome in outcomes)

    def _left(self, chunk: Chunk) -> Sequence[Work]:
        """What of a chunk is not committed yet; reads the records of shards that are new."""
        for number in self._store.unseen(self._shards_seen):
            if (read := self._store.records(number)) is not None:
                self._committed.update(read[0]["key"])
            self._shards_seen.add(number)
        if not self._committed:  # no others are at work
            return chunk.work
        return [item for item in chunk.work if item.key not in self._committed]

    def _count_others(self, count: int) -> None:
        if count:
            self._by_others += count
            self._progress(self._encoded + self._by_others, self._total)

    def _obey(self) -> None:
        if self._stop():
            raise EmbeddingInterrupted(self._encoded + self._by_others, self._total)
