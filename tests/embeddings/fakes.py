"""Encoders with known vectors, and catalogues made of short lists, for the cache's tests."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd import EncoderCard, ItemTable
from mmkd.trust import trust_code

trust_code("embeddings")  # this folder's kinds, wherever they are used

DIM = 6
TEXTS: list[str | None] = [f"text number {n}" for n in range(50)]


def text_vector(text: str, dim: int = DIM) -> NDArray[np.float32]:
    """The vector that every text encoder here gives: from a hash, so known without an encoder."""
    digest = hashlib.md5(text.encode("utf-8", "surrogatepass")).digest()
    values = np.frombuffer(digest[:dim], np.uint8).astype(np.float32)
    return (values - np.float32(127.5)) / np.float32(64)


def image_vector(image: Image.Image) -> NDArray[np.float32]:
    """Mean colour, size and the top left pixel's red."""
    pixels = np.asarray(image, np.float32)
    mean = pixels.mean(axis=(0, 1))
    return np.array([*mean, image.width, image.height, pixels[0, 0, 0]], np.float32)


def never() -> NoReturn:
    """An encoder factory for runs in which nothing has to be encoded."""
    raise AssertionError("the encoder was built although nothing had to be encoded")


class FakeText:
    """A text encoder that counts, and fails where it is told to."""

    version: ClassVar[int] = 1
    modality = "text"
    dim = DIM

    def __init__(
        self,
        *,
        seen: list[str] | None = None,
        spoil: Callable[[str], Any] | None = None,
        dtype: str = "float32",
    ) -> None:
        self.seen = seen if seen is not None else []
        self.spoil = spoil
        self.dtype = dtype

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        rows = []
        for text in inputs:
            row = text_vector(text)
            spoiled = self.spoil(text) if self.spoil else None
            rows.append(row if spoiled is None else row + spoiled)
        self.seen.extend(inputs)
        return np.stack(rows)


class LoggingText(FakeText):
    """Slow, and appends each text it has encoded to the file named by FAKE_LOG."""

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        time.sleep(0.02 * len(inputs))
        with open(os.environ["FAKE_LOG"], "a", encoding="utf-8") as file:
            file.write("".join(f"{text}\n" for text in inputs))
        return super().encode(inputs)


class BatchBoundText(LoggingText):
    """Adds the sum over all inputs given at once: a vector tells what it was encoded with."""

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        vectors = super().encode(inputs)
        together: NDArray[np.float32] = vectors + vectors.sum(axis=0)
        return together


class FakeFitted(FakeText):
    """Adds the number of characters of the corpus it was fitted on."""

    fitted: ClassVar[bool] = True
    corpus: Sequence[Any] | None = None

    def fit(self, inputs: Sequence[Any]) -> Self:
        self.corpus = list(inputs)
        return self

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        assert self.corpus is not None
        return super().encode(inputs) + np.float32(sum(map(len, self.corpus)))


class FakeImage:
    """An image encoder that counts."""

    version: ClassVar[int] = 1
    modality = "image"
    dim = DIM

    def __init__(self, *, seen: list[tuple[int, int]] | None = None) -> None:
        self.seen = seen if seen is not None else []

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        assert len(inputs) <= batch_size and all(image.mode == "RGB" for image in inputs)
        self.seen.extend(image.size for image in inputs)
        return np.stack([image_vector(image) for image in inputs])


def card(kind: str = "FakeText", *, name: str = "fake", **fields: Any) -> EncoderCard:
    modality: Any = "image" if kind == "FakeImage" else "text"
    return EncoderCard(name=name, modality=modality, kind=f"embeddings.fakes:{kind}", **fields)


def catalogue(
    texts: Sequence[str | None] | None = None, *, images: Sequence[Path | None] | None = None
) -> ItemTable:
    count = len(texts if texts is not None else images or [])
    ids = ["", *(f"item-{row}" for row in range(1, count + 1))]
    return ItemTable(
        ids=tuple(ids),
        titles=tuple(ids),
        text=(None, *(texts if texts is not None else [None] * count)),
        image_path=(None, *(images if images is not None else [None] * count)),
        attributes=((),) * (count + 1),
    )
