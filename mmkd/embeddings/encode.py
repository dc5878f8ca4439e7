"""EncodingSettings: a recipe's ``embed`` section, what changes an embedding run but no vector."""

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.embeddings.chunks import Chunk, Committed, claimed, cut
from mmkd.embeddings.inputs import Loaded, Work, storable
from mmkd.embeddings.pictures import PictureLoader
from mmkd.embeddings.shards import NOT_IN_FILE, Outcome, ShardStore, StoreContents, writing
from mmkd.encoders.base import Encoder
from mmkd.errors import CacheError, EmbeddingInterrupted
from mmkd.files import writer_lock


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

    def __init__(
        self,
        *,
        device: str = "auto",
        batch_size: int = 64,
        batch_tokens: int | None = None,
        workers: int | None = None,
    ) -> None:
        wrong = [
            f"{name}: got {count}, wanted at least {least}"
            for name, count, least in (
                ("batch_size", batch_size, 1),
                ("batch_tokens", batch_tokens, 1),
                ("workers", workers, 0),
            )
            if count is not None and count < least
        ]
        if wrong:
            raise ValueError("\n".join(wrong))
        self.device = device
        self.batch_size = batch_size
        self.batch_tokens = batch_tokens
        self.workers = workers

    def resolved_device(self) -> str:
        """``device`` as `mmkd.encoders.EncoderCard.build` takes it, definite for this process.

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
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1:
        import torch

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


class GuardedEncoder:
    """An encoder whose failures are traced to single inputs or to the encoder itself.

    Args:
        encoder: Any encoder.
        batch_size: Passed on to it.
        named: Whether it knows items by name, and so may lack any number of them.
    """

    def __init__(self, encoder: Encoder, *, batch_size: int, named: bool = False) -> None:
        self._named = named
        self._encoder = encoder
        self._prepare = getattr(encoder, "prepare", None)
        self._batch_size = batch_size
        self._vectors = 0  # since the last `require_a_vector`
        self._reasons: list[str] = []

    def encode(self, inputs: Sequence[Any]) -> list[NDArray[np.float32] | str]:
        """Encodes inputs, halving a batch that fails until the inputs at fault stand alone.

        Args:
            inputs: n texts, n images, or n pictures prepared by the encoder's ``prepare``.

        Returns:
            n vectors ``[D]`` or reasons why an input has none.

        Raises:
            CacheError: The encoder fails on a trivial input too, or gives a wrong shape.
        """
        results = self._halving(inputs)
        for result in results:
            if not isinstance(result, str):
                self._vectors += 1
            elif result != NOT_IN_FILE:
                self._reasons.append(result)
        return results

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

    def _halving(self, inputs: Sequence[Any]) -> list[NDArray[np.float32] | str]:
        try:
            vectors = self._run(inputs)
        except Exception as error:
            if not self._works():
                raise CacheError(
                    f"the encoder fails on any input: {type(error).__name__}: {error}; what was "
                    "committed before is kept: correct the cause and run again"
                ) from error
            if len(inputs) == 1 and _out_of_memory(error):
                raise CacheError(
                    f"the encoder has no memory for a single input ({error}); what was committed "
                    "before is kept: free the device, or lower max_length_tokens or image_size in "
                    "a card of your own, and run again"
                ) from error
            if len(inputs) == 1:
                return [storable(f"the encoder failed: {type(error).__name__}: {error}")]
            middle = len(inputs) // 2
            return self._halving(inputs[:middle]) + self._halving(inputs[middle:])
        return self._checked(vectors, len(inputs))

    def _checked(self, vectors: Any, count: int) -> list[NDArray[np.float32] | str]:
        wanted = (count, self._encoder.dim)
        if getattr(vectors, "shape", None) != wanted:
            raise CacheError(
                f"the encoder gave shape {getattr(vectors, 'shape', type(vectors))}, wanted "
                f"{wanted}: one vector per input, in their order"
            )
        with np.errstate(over="ignore"):
            rows = np.array(vectors, np.float32)  # a copy: an encoder may reuse its buffer
        unsound = NOT_IN_FILE if self._named else "the encoder gave a vector that is not finite"
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        return [row if sound else unsound for row, sound in zip(rows, finite, strict=True)]

    def _run(self, inputs: Sequence[Any]) -> Any:
        if inputs and self._prepare is not None and isinstance(inputs[0], np.ndarray):
            prepared: Any = self._encoder  # has `encode_prepared` beside `prepare`
            return prepared.encode_prepared(inputs, batch_size=self._batch_size)
        return self._encoder.encode(inputs, batch_size=self._batch_size)

    def _works(self) -> bool:
        """Whether the encoder copes with a trivial input: then a failure is the item's."""
        grey = Image.new("RGB", (64, 64), (128, 128, 128))
        probe: list[Any] = [grey] if self._encoder.modality == "image" else ["a short text"]
        try:
            vectors = self._encoder.encode(probe, batch_size=1)
            return bool(np.isfinite(vectors).all())
        except Exception:
            return False


def _out_of_memory(error: Exception) -> bool:
    # torch's own class, without importing torch for encoders that do not
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


# decoded pictures in one batch, as RGB: 768 MiB
_PIXELS_AT_ONCE = 1 << 28
# texts given to the encoder at once, in batches: it sorts them by their number of tokens
_TEXT_BATCHES = 8


@dataclass
class Stopwatch:
    """Where the time of a run goes.

    Attributes:
        encode_s: In the encoder.
        wait_s: Waiting for pictures.
    """

    encode_s: float = 0.0
    wait_s: float = 0.0

    @property
    def waited(self) -> float:
        """Share of the time, 0..1, that the encoder waited for inputs."""
        total = self.encode_s + self.wait_s
        return self.wait_s / total if total else 0.0


def encode_chunk(
    encoder: GuardedEncoder,
    chunk: Sequence[Work],
    loader: PictureLoader | None,
    *,
    batch_size: int,
    watch: Stopwatch,
    advance: Callable[[int], None],
    stop: Callable[[], bool],
) -> list[Outcome]:
    """Encodes a chunk.

    Args:
        encoder: The encoder.
        chunk: The work.
        loader: For pictures; None for texts.
        batch_size: Inputs through the model at once.
        watch: Is told where the time goes.
        advance: Called with the number of inputs done, after each batch.
        stop: Asked after each batch; if true, what is left of the chunk is not encoded.

    Returns:
        Outcomes; fewer than the chunk's if it was stopped, or if files are gone.

    Raises:
        CacheError: The encoder itself is at fault.
    """
    outcomes: list[Outcome] = []
    batches = _pictures(chunk, loader, batch_size) if loader else _texts(chunk, batch_size)
    while True:
        began = time.perf_counter()
        batch = next(batches, None)
        loaded = time.perf_counter()
        watch.wait_s += loaded - began
        if batch is None:
            return outcomes
        outcomes += _encode_batch(encoder, batch)
        watch.encode_s += time.perf_counter() - loaded
        advance(len(outcomes))
        if stop():
            return outcomes


def _encode_batch(encoder: GuardedEncoder, batch: Sequence[Loaded]) -> list[Outcome]:
    sound = [loaded for loaded in batch if loaded.content is not None]
    results = encoder.encode([loaded.content for loaded in sound]) if sound else []
    outcomes = [
        Outcome(loaded.key, loaded.item_id, None, loaded.reason)
        for loaded in batch
        if loaded.content is None
    ]
    for loaded, result in zip(sound, results, strict=True):
        vector, reason = (None, result) if isinstance(result, str) else (result, None)
        outcomes.append(Outcome(loaded.key, loaded.item_id, vector, reason))
    return outcomes


def _texts(chunk: Sequence[Work], batch_size: int) -> Iterator[list[Loaded]]:
    step = _TEXT_BATCHES * batch_size
    for start in range(0, len(chunk), step):
        part = chunk[start : start + step]
        yield [Loaded(item.key, item.item_id, str(item.source)) for item in part]


def _pictures(
    chunk: Sequence[Work], loader: PictureLoader, batch_size: int
) -> Iterator[list[Loaded]]:
    """Batches of pictures that fit in memory."""
    batch: list[Loaded] = []
    pixels = 0
    for loaded in loader.load(chunk):
        batch.append(loaded)
        if isinstance(loaded.content, Image.Image):
            pixels += loaded.content.width * loaded.content.height
        if len(batch) >= batch_size or pixels >= _PIXELS_AT_ONCE:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


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
            with writing(self._folder), writer_lock(self._folder):
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
