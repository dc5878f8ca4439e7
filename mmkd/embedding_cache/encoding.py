"""One chunk of work through an encoder: inputs to outcomes, batch by batch.

A chunk is what is committed together, so that a killed run loses at most one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from mmkd.embedding_cache.guarded import GuardedEncoder
from mmkd.embedding_cache.pictures import Loaded, PictureLoader, Work
from mmkd.embedding_cache.shards import Outcome

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
