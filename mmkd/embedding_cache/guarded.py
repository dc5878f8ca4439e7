"""An encoder whose failures cost the input at fault only, and never a whole catalogue silently.

From inputs to a vector or a reason each.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.embedding_cache.errors import CacheError
from mmkd.embedding_cache.inputs import storable
from mmkd.embedding_cache.manifest import NOT_IN_FILE
from mmkd.encoders.base import Encoder


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
