"""Running an encoder over what a cache lacks, so that one bad item costs that item only.

From work items (a key and a text or a file) to shards committed one after the other. After each
shard the store is complete so far: a killed run loses at most one shard of work.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.embedding_cache.errors import CacheError
from mmkd.embedding_cache.images import ImageProblem, decode_image
from mmkd.embedding_cache.inputs import content_key, storable
from mmkd.embedding_cache.shards import Outcome, ShardStore
from mmkd.encoders.base import Encoder

# decoded pictures held at once, as RGB: 768 MiB
_PIXELS_AT_ONCE = 1 << 28
_DECODERS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class Work:
    """One input to encode.

    Attributes:
        key: Its content key.
        item_id: An item that has it.
        source: The text, or the picture's file.
    """

    key: str
    item_id: str
    source: str | Path


def encode_to_shards(
    encoder: Encoder,
    work: Sequence[Work],
    store: ShardStore,
    *,
    shard_size: int,
    batch_size: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Encodes the work and commits a shard per ``shard_size`` inputs.

    Args:
        encoder: The encoder, fitted if it has to be.
        work: What to encode, each key once.
        store: Where to; the caller holds its writer lock.
        shard_size: Inputs per shard.
        batch_size: Pictures decoded and encoded at once; for text passed on to the encoder, which
            is given a shard at once so that it can sort by length.
        progress: Called with (done, total) after each batch.

    Raises:
        CacheError: The encoder itself is at fault, or the folder cannot be written.
    """
    guarded = GuardedEncoder(encoder, batch_size=batch_size)
    nothing_stored = store.contents().dim is None
    done = 0
    for start in range(0, len(work), shard_size):
        shard = work[start : start + shard_size]
        outcomes: list[Outcome] = []
        for batch in _batches(shard, batch_size):
            outcomes.extend(_encode_batch(guarded, batch))
            done += len(batch)
            if progress is not None:
                progress(done, len(work))
        guarded.require_a_vector(nothing_stored=nothing_stored)
        store.commit(outcomes)
        nothing_stored &= all(outcome.vector is None for outcome in outcomes)


class GuardedEncoder:
    """An encoder whose failures are traced to single inputs or to the encoder itself.

    Args:
        encoder: Any encoder.
        batch_size: Passed on to it.
    """

    def __init__(self, encoder: Encoder, *, batch_size: int) -> None:
        self._encoder = encoder
        self._batch_size = batch_size
        self._vectors = 0  # since the last `require_a_vector`
        self._reasons: list[str] = []

    def encode(self, inputs: Sequence[Any]) -> list[NDArray[np.float32] | str]:
        """Encodes inputs, halving a batch that fails until the inputs at fault stand alone.

        Args:
            inputs: n texts or n images.

        Returns:
            n vectors ``[D]`` or reasons why an input has none.

        Raises:
            CacheError: The encoder fails on a trivial input too, or gives a wrong shape.
        """
        results = self._halving(inputs)
        for result in results:
            if isinstance(result, str):
                self._reasons.append(result)
            else:
                self._vectors += 1
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
            vectors = self._encoder.encode(inputs, batch_size=self._batch_size)
        except Exception as error:
            if not self._works():
                raise CacheError(
                    f"the encoder fails on any input: {type(error).__name__}: {error}; what was "
                    "encoded before is kept: correct the cause and run again"
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
        finite = np.asarray(np.isfinite(rows).all(axis=1))
        return [
            row if sound else "the encoder gave a vector that is not finite"
            for row, sound in zip(rows, finite, strict=True)
        ]

    def _works(self) -> bool:
        """Whether the encoder copes with a trivial input: then a failure is the item's."""
        grey = Image.new("RGB", (64, 64), (128, 128, 128))
        probe: list[Any] = [grey] if self._encoder.modality == "image" else ["a short text"]
        try:
            vectors = self._encoder.encode(probe, batch_size=1)
            return bool(np.isfinite(vectors).all())
        except Exception:
            return False


@dataclass(frozen=True)
class _Loaded:
    key: str
    item_id: str
    content: str | Image.Image | None
    reason: str | None = None


def _encode_batch(encoder: GuardedEncoder, batch: Sequence[_Loaded]) -> list[Outcome]:
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


def _batches(work: Sequence[Work], batch_size: int) -> Iterator[list[_Loaded]]:
    """A shard's texts at once; its pictures in batches that fit in memory."""
    if work and isinstance(work[0].source, str):
        yield [_Loaded(item.key, item.item_id, str(item.source)) for item in work]
        return
    batch: list[_Loaded] = []
    pixels = 0
    for loaded in _decoded(work):
        batch.append(loaded)
        if isinstance(loaded.content, Image.Image):
            pixels += loaded.content.width * loaded.content.height
        if len(batch) >= batch_size or pixels >= _PIXELS_AT_ONCE:
            yield batch
            batch, pixels = [], 0
    if batch:
        yield batch


def _decoded(work: Iterable[Work]) -> Iterator[_Loaded]:
    """Decodes ahead of the encoder in threads, a few pictures at a time, in order."""
    waiting: deque[Future[_Loaded | None]] = deque()
    with ThreadPoolExecutor(_DECODERS) as pool:
        for item in work:
            waiting.append(pool.submit(_decode, item))
            if len(waiting) >= 2 * _DECODERS:
                yield from _landed(waiting)
        while waiting:
            yield from _landed(waiting)


def _landed(waiting: deque[Future[_Loaded | None]]) -> Iterator[_Loaded]:
    loaded = waiting.popleft().result()
    if loaded is not None:
        yield loaded


def _decode(work: Work) -> _Loaded | None:
    try:
        data = Path(work.source).read_bytes()
    except OSError:
        return None  # gone since it was hashed; its key says nothing about it any more
    key = content_key(data)  # of the bytes decoded, should the file have changed meanwhile
    try:
        return _Loaded(key, work.item_id, decode_image(data))
    except ImageProblem as problem:
        return _Loaded(key, work.item_id, None, storable(str(problem)))
