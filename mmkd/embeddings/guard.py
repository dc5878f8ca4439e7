"""An encoder whose failures are traced to single inputs, or to the encoder itself.

From work (`mmkd.embeddings.inputs`) to `Outcome`s, a batch at a time: a batch that fails is halved
until the fault stands alone, and costs that input only. An encoder that fails on a trivial input
too, or gives no vector at all, stops the run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.embeddings.inputs import Loaded, Work, storable
from mmkd.embeddings.pictures import PictureLoader
from mmkd.embeddings.shards import NOT_IN_FILE, Outcome
from mmkd.encoders import Encoder
from mmkd.errors import CacheError

# decoded pictures in one batch, as RGB: 768 MiB
_PIXELS_AT_ONCE = 1 << 28
# texts given to the encoder at once, in batches: it sorts them by their number of tokens
_TEXT_BATCHES = 8


@contextmanager
def guarded(
    ready: Callable[[], Encoder],
    *,
    pictures: bool,
    count: int,
    batch_size: int,
    workers: int | None,
    named: bool,
) -> Iterator["GuardedEncoder"]:
    """Makes an encoder, and what loads its pictures for as long as the block lasts.

    Args:
        ready: Makes the encoder, fitted if it has to be.
        pictures: Whether it reads files, and not texts.
        count: Inputs in all, to judge whether processes that decode pictures pay.
        batch_size: Inputs through the model at once.
        workers: Processes that decode pictures; see `PictureLoader`.
        named: Whether the encoder knows items by name (``EncoderCard.reads``).
    """
    encoder, loader = ready(), None
    with ExitStack() as stack:
        if pictures:
            prepare, ahead = getattr(encoder, "prepare", None), 2 * batch_size
            loader = stack.enter_context(
                PictureLoader(prepare, workers=workers, ahead=ahead, count=count)
            )
        yield GuardedEncoder(encoder, loader, batch_size=batch_size, named=named)


def no_vector(reasons: Sequence[str]) -> CacheError:
    """What ends a run in which everything fails, before a failure is recorded for each item."""
    return CacheError(
        f"the encoder gave no vector for any of {len(reasons)} items; the first reason: "
        f"{reasons[0]}; nothing was recorded for them: correct the encoder or its card and run "
        "again"
    )


Guarded = Callable[[], AbstractContextManager["GuardedEncoder"]]


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
        self._vectors = 0  # since the last `doubt`
        self._reasons: list[str] = []
        self.encode_s = self.wait_s = 0.0

    @property
    def waited(self) -> float:
        """Share of the time, 0..1, that the encoder waited for inputs."""
        total = self.encode_s + self.wait_s
        return self.wait_s / total if total else 0.0

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
            self.wait_s += loaded - began
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
            self.encode_s += time.perf_counter() - loaded
            yield found

    def doubt(self) -> list[str]:
        """Why all inputs since the last call failed in the encoder; empty where one did not.

        Raises:
            CacheError: They did, and it fails on a trivial input too.
        """
        reasons = [] if self._vectors else self._reasons
        if reasons and not self._works():
            raise no_vector(reasons)
        self._vectors, self._reasons = 0, []
        return reasons

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
