"""An embedding run: work in, committed shards out, beside any number of processes at the same.

From the inputs that a store lacks to shards in it (`mmkd.embeddings.shards`), a chunk at a time
(`mmkd.embeddings.chunks`). A failure costs the one input it belongs to; one of the encoder itself
stops the run. `EncodingSettings` is a recipe's ``embed`` section: what changes a run but no vector.
"""

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.embeddings.chunks import Chunk, claimed, cut
from mmkd.embeddings.inputs import Loaded, Work, storable
from mmkd.embeddings.pictures import PictureLoader
from mmkd.embeddings.shards import NOT_IN_FILE, Outcome, ShardStore, StoreContents
from mmkd.encoders import Encoder
from mmkd.errors import CacheError, EmbeddingInterrupted, at_least, checked
from mmkd.threads import thread_count, use_threads

_POLL_S = 0.2
# decoded pictures in one batch, as RGB: 768 MiB
_PIXELS_AT_ONCE = 1 << 28
# texts given to the encoder at once, in batches: it sorts them by their number of tokens
_TEXT_BATCHES = 8


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
    ) -> None:
        self.device = device
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.workers = workers

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each option that is out of range."""
        counted = {name: options.get(name) for name in ("batch_size", "batch_tokens")}
        return at_least(1, **counted) + at_least(0, workers=options.get("workers"))

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
    ) -> None:
        self._store = store
        self._shards_seen = set(contents.shards)
        self._committed: set[str] = set()  # keys, by others since
        self._nothing_stored = contents.dim is None
        self._shard_size = shard_size
        self._batch_size = batch_size
        self._workers = workers
        self._named = named
        self._progress = progress or (lambda done, total: None)
        self._stop = stop or (lambda: False)
        self._encoded = self._by_others = self._total = 0

    def encode(self, ready: Callable[[], Encoder], work: Sequence[Work]) -> RunReport:
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
                made, loader = ready(), None
                if not isinstance(work[0].source, str):
                    prepare, ahead = getattr(made, "prepare", None), 2 * self._batch_size
                    loader = stack.enter_context(
                        PictureLoader(prepare, workers=self._workers, ahead=ahead, count=len(work))
                    )
                return GuardedEncoder(made, loader, batch_size=self._batch_size, named=self._named)

            while chunks:
                left = [chunk for chunk in chunks if not self._done(chunk, encoder)]
                if len(left) == len(chunks):
                    time.sleep(_POLL_S)  # others have the rest; what a dead one left is taken over
                chunks = left
            if self._encoded:
                waited, texts_cut = encoder().waited, encoder().cut
        seconds = time.perf_counter() - began
        return RunReport(self._encoded, self._by_others, seconds, waited, texts_cut)

    def _done(self, chunk: Chunk, encoder: Callable[[], "GuardedEncoder"]) -> bool:
        """Whether a chunk is committed now, here or before; False where others are at it."""
        self._obey()
        if not self._left(chunk):
            self._count_others(len(chunk.work))
            return True
        with claimed(self._store.folder, chunk) as mine:
            if not mine:
                return False
            left = self._left(chunk)  # asked again: now nobody else can commit it
            self._count_others(len(chunk.work) - len(left))
            outcomes: list[Outcome] = []
            for batch in encoder().outcomes(left) if left else ():
                outcomes += batch
                self._progress(self._encoded + self._by_others + len(outcomes), self._total)
                if self._stop():
                    break
            if left:
                encoder().require_a_vector(nothing_stored=self._nothing_stored)
            if outcomes:
                # its own shard need not be read: the chunk will not be asked for again
                self._shards_seen.add(self._store.commit(outcomes))
            self._encoded += len(outcomes)
            self._nothing_stored &= all(outcome.vector is None for outcome in outcomes)
        self._obey()
        return True

    def _left(self, chunk: Chunk) -> Sequence[Work]:
        """What of a chunk is not committed yet; reads the records of shards that are new."""
        for number in self._store.unseen(self._shards_seen):
            if (read := self._store.records(number)) is not None:
                self._committed.update(read[0]["key"])
            self._shards_seen.add(number)
        return [item for item in chunk.work if item.key not in self._committed]

    def _count_others(self, count: int) -> None:
        if count:
            self._by_others += count
            self._progress(self._encoded + self._by_others, self._total)

    def _obey(self) -> None:
        if self._stop():
            raise EmbeddingInterrupted(self._encoded + self._by_others, self._total)


class GuardedEncoder:
    """An encoder whose failures are traced to single inputs or to the encoder itself.

    Args:
        encoder: Any encoder.
        loader: For pictures; None for texts.
        batch_size: Inputs through the model at once.
        named: Whether it knows items by name, and so may lack any number of them.
    """

    def __init__(
        self, encoder: Encoder, loader: PictureLoader | None, *, batch_size: int, named: bool
    ) -> None:
        self._encoder = encoder
        self._loader = loader
        self._batch_size = batch_size
        self._unsound = NOT_IN_FILE if named else "the encoder gave a vector that is not finite"
        self._vectors = 0  # since the last `require_a_vector`
        self._reasons: list[str] = []
        self._encode_s = self._wait_s = 0.0

    @property
    def waited(self) -> float:
        """Share of the time, 0..1, that the encoder waited for inputs."""
        total = self._encode_s + self._wait_s
        return self._wait_s / total if total else 0.0

    @property
    def cut(self) -> int:
        """Texts that were longer than the encoder takes, where it counts them."""
        return int(getattr(self._encoder, "texts_cut", 0))

    def outcomes(self, work: Sequence[Work]) -> Iterator[list[Outcome]]:
        """Encodes a chunk, a batch at a time.

        Args:
            work: The inputs.

        Yields:
            What became of a batch; of a file that is gone nothing.

        Raises:
            CacheError: The encoder fails on a trivial input too, or gives a wrong shape.
        """
        batches = self._batches(work)
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            loaded = time.perf_counter()
            self._wait_s += loaded - began
            if batch is None:
                return
            sound = [one for one in batch if one.content is not None]
            lost = [one for one in batch if one.content is None]
            found = [Outcome(one.key, one.item_id, None, one.reason) for one in lost]
            for one, result in zip(
                sound, self._encode([one.content for one in sound]), strict=True
            ):
                vector, reason = (None, result) if isinstance(result, str) else (result, None)
                found.append(Outcome(one.key, one.item_id, vector, reason))
                self._vectors += vector is not None
                if reason not in (None, NOT_IN_FILE):
                    self._reasons.append(reason)
            self._encode_s += time.perf_counter() - loaded
            yield found

    def require_a_vector(self, *, nothing_stored: bool) -> None:
        """Stops a run in which everything fails, before a failure is recorded for each item.

        Args:
            nothing_stored: Whether no vector of this encoder exists yet.

        Raises:
            CacheError: All inputs since the last call failed in the encoder, and there is no sign
                that it ever worked or it fails on a trivial input.
        """
        if self._reasons and not self._vectors and (nothing_stored or not self._works()):
            raise CacheError(
                f"the encoder gave no vector for any of {len(self._reasons)} items; the first "
                f"reason: {self._reasons[0]}; nothing was recorded for them: correct the encoder "
                "or its card and run again"
            )
        self._vectors, self._reasons = 0, []

    def _batches(self, work: Sequence[Work]) -> Iterator[list[Loaded]]:
        """Texts several batches at once; pictures as many as fit in memory."""
        if self._loader is None:
            step = _TEXT_BATCHES * self._batch_size
            for start in range(0, len(work), step):
                part = work[start : start + step]
                yield [Loaded(item.key, item.item_id, str(item.source)) for item in part]
            return
        batch: list[Loaded] = []
        pixels = 0
        for loaded in self._loader.load(work):
            batch.append(loaded)
            if isinstance(loaded.content, Image.Image):
                pixels += loaded.content.width * loaded.content.height
            if len(batch) >= self._batch_size or pixels >= _PIXELS_AT_ONCE:
                yield batch
                batch, pixels = [], 0
        if batch:
            yield batch

    def _encode(self, inputs: Sequence[Any]) -> list[NDArray[np.float32] | str]:
        """Vectors ``[D]`` or reasons; a batch that fails is halved until the fault stands alone."""
        if not inputs:
            return []
        try:
            encoder: Any = self._encoder
            prepared = isinstance(inputs[0], np.ndarray)  # by its own `prepare`
            encode = encoder.encode_prepared if prepared else encoder.encode
            vectors = encode(inputs, batch_size=self._batch_size)
        except Exception as error:
            if not self._works():
                raise CacheError(
                    f"the encoder fails on any input: {type(error).__name__}: {error}; what was "
                    "committed before is kept: correct the cause and run again"
                ) from error
            if len(inputs) > 1:
                middle = len(inputs) // 2
                return self._encode(inputs[:middle]) + self._encode(inputs[middle:])
            # torch's own class, without importing torch for encoders that do not
            if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
                raise CacheError(
                    f"the encoder has no memory for a single input ({error}); what was committed "
                    "before is kept: free the device, or lower max_length_tokens or image_size in "
                    "a card of your own, and run again"
                ) from error
            return [storable(f"the encoder failed: {type(error).__name__}: {error}")]
        shape, wanted = getattr(vectors, "shape", type(vectors)), (len(inputs), self._encoder.dim)
        if shape != wanted:
            raise CacheError(
                f"the encoder gave shape {shape}, wanted {wanted}: one vector per input, in their "
                "order"
            )
        with np.errstate(over="ignore"):
            rows = np.array(vectors, np.float32)  # a copy: an encoder may reuse its buffer
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        return [row if sound else self._unsound for row, sound in zip(rows, finite, strict=True)]

    def _works(self) -> bool:
        """Whether the encoder copes with a trivial input: then a failure is the item's."""
        grey = Image.new("RGB", (64, 64), (128, 128, 128))
        probe: list[Any] = [grey] if self._encoder.modality == "image" else ["a short text"]
        try:
            vectors = self._encoder.encode(probe, batch_size=1)
            return bool(np.isfinite(vectors).all())
        except Exception:
            return False
