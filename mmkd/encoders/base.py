"""What an encoder is: texts or images in, one float32 vector each out.

From: a sequence of strings or of PIL RGB images. To: ``[n, dim]`` float32 on the CPU, in the order
of the inputs. An encoder is frozen: the same input gives the same vector, whatever else is in the
batch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.errors import EncoderError


@runtime_checkable
class Encoder(Protocol):
    """A frozen map from texts or images to vectors.

    Attributes:
        modality: ``"text"`` or ``"image"``.
        dim: Width of a vector.

    A class that a card's ``kind`` names also carries ``version: ClassVar[int]``, raised whenever
    a change to its code changes its vectors (and ``version_of(settings)``, a static method, where
    it changes those of some settings only), and takes its settings as keyword-only arguments named
    like the card's fields (see `mmkd.encoders.registry`).
    """

    modality: str
    dim: int

    def encode(
        self, inputs: Sequence[str] | Sequence[Image.Image], *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Encodes the inputs, in order.

        Args:
            inputs: n strings or n PIL RGB images.
            batch_size: How many inputs go through the model at once; never changes the vectors
                beyond floating-point rounding.

        Returns:
            ``[n, dim]`` float32, finite, on the CPU.

        Raises:
            EncoderError: An input has the wrong type.
        """
        ...


@runtime_checkable
class FittedEncoder(Encoder, Protocol):
    """An encoder fitted on the catalogue it encodes.

    Its vectors depend on the whole catalogue, so a cache must put the catalogue's inputs, and not
    only the item's own, into the key of a vector.
    """

    fitted: ClassVar[bool] = True

    def fit(self, inputs: Sequence[str] | Sequence[Image.Image]) -> Self:
        """Fits the encoder on all inputs of the catalogue; deterministic; returns itself."""
        ...


@runtime_checkable
class PreparingEncoder(Encoder, Protocol):
    """An image encoder whose preprocessing can run elsewhere, in worker processes ahead of it.

    ``encode(images)`` gives the same vectors as ``encode_prepared([prepare(i) for i in images])``.

    Attributes:
        prepare: From a PIL RGB image to the array the model takes, ``[3, height, width]``
            float32; it can be pickled and carries no model.
    """

    prepare: Callable[[Image.Image], NDArray[np.float32]]

    def encode_prepared(
        self, prepared: Sequence[NDArray[np.float32]], *, batch_size: int = 64
    ) -> NDArray[np.float32]:
        """Encodes n prepared images into ``[n, dim]`` float32, in order; see `Encoder.encode`."""
        ...


@runtime_checkable
class TunableEncoder(Encoder, Protocol):
    """An encoder whose model can learn on from what it encodes (see `mmkd.tuning`).

    Attributes:
        model: The ``torch.nn.Module`` that learns; a model of transformers, or one around it.
    """

    @property
    def model(self) -> Any:
        """See above."""
        ...

    def features(self, inputs: Sequence[str] | Sequence[Image.Image]) -> list[NDArray[Any]]:
        """What the model takes of each of n inputs: token ids ``[l]``, or pixels."""
        ...

    def differentiable(self, features: Sequence[NDArray[Any]]) -> Any:
        """Vectors ``[n, dim]`` with gradients, on the model's device, before any scaling."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model as this kind reads it from a local path, weights as safetensors."""
        ...


def encode_in_batches(
    inputs: Sequence[Any],
    forward: Callable[[Sequence[Any]], NDArray[np.float32]],
    *,
    dim: int,
    batch_size: int,
) -> NDArray[np.float32]:
    """The rows that ``forward`` gives for the inputs, ``batch_size`` at a time.

    Args:
        inputs: n inputs.
        forward: From b inputs to ``[b, dim]``.
        dim: Width of a row.
        batch_size: At most so many inputs a call.

    Returns:
        ``[n, dim]`` float32, in order.

    Raises:
        EncoderError: ``batch_size`` is not positive.
    """
    _check_call(inputs, batch_size)
    vectors = np.zeros((len(inputs), dim), np.float32)
    for start in range(0, len(inputs), batch_size):
        vectors[start : start + batch_size] = forward(inputs[start : start + batch_size])
    return vectors


def checked_texts(inputs: Sequence[Any], *, batch_size: int) -> list[str]:
    """The inputs as strings that every tokenizer accepts.

    Args:
        inputs: A sequence of n strings.
        batch_size: Checked to be positive.

    Returns:
        n strings; half of a surrogate pair (broken input, not encodable in UTF-8) becomes ``?``.

    Raises:
        EncoderError: ``inputs`` is one string, or holds something that is no string.
    """
    _check_call(inputs, batch_size)
    for position, text in enumerate(inputs):
        if not isinstance(text, str):
            raise EncoderError(
                f"input {position} is a {type(text).__name__}, this encoder takes text; "
                "leave missing items out or check the card's modality"
            )
    return [text.encode("utf-8", "replace").decode("utf-8") for text in inputs]


def checked_images(inputs: Sequence[Any], *, batch_size: int) -> list[Image.Image]:
    """The inputs as RGB images.

    Args:
        inputs: A sequence of n PIL images.
        batch_size: Checked to be positive.

    Returns:
        n images in mode RGB.

    Raises:
        EncoderError: An input is no PIL image, or has no pixels.
    """
    _check_call(inputs, batch_size)
    for position, image in enumerate(inputs):
        if not isinstance(image, Image.Image):
            raise EncoderError(
                f"input {position} is a {type(image).__name__}, this encoder takes PIL images; "
                "leave missing items out or check the card's modality"
            )
        if 0 in image.size:
            raise EncoderError(f"input {position} is an image without pixels, size {image.size}")
    return [image if image.mode == "RGB" else image.convert("RGB") for image in inputs]


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of ``[n, dim]`` scaled to Euclidean length 1; a zero row stays zero."""
    # by a power of two, which rounds nothing: the squares of 1e20 would overflow, of 1e-30 vanish
    _, exponent = np.frexp(np.abs(vectors).max(axis=-1, keepdims=True, initial=0))
    scaled = np.ldexp(vectors, -exponent)
    norms = np.linalg.norm(scaled, axis=-1, keepdims=True)
    unit: NDArray[np.float32] = (scaled / np.where(norms > 0, norms, 1)).astype(np.float32)
    return unit


def _check_call(inputs: object, batch_size: int) -> None:
    if isinstance(inputs, str | Image.Image):
        raise EncoderError("got one input, wanted a sequence of them; wrap it in a list")
    if batch_size < 1:
        raise EncoderError(f"batch_size {batch_size} is not positive; use 1 or more")
