"""What `embed.py` holds the embedding run to: bare forwards, and the same vectors elsewhere."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mmkd.encoders import EncoderCard
from mmkd.encoders.loading import resolve_model

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PICTURE_MODEL = "ViT-B-32"


def quiet() -> None:
    """No progress bars of weights, and no warnings that random weights are random."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger().setLevel(logging.ERROR)


def sentence_model(card: EncoderCard) -> "SentenceTransformer":
    """A card's model as sentence-transformers itself loads it."""
    import torch
    from sentence_transformers import SentenceTransformer

    source, revision = resolve_model(str(card.model), revision=card.revision)
    model = SentenceTransformer(
        source,
        revision=revision,
        device="cpu",
        model_kwargs={"dtype": getattr(torch, card.dtype)},
    )
    if card.max_length_tokens is not None:
        model.max_seq_length = card.max_length_tokens
    return model.eval()


class TextForward:
    """A model's forward over batches that were tokenised and sorted beforehand: the limit.

    Args:
        model: The model, with its pooling.
        texts: The texts, sorted by their number of tokens, the longest first.
        batch_size: Texts in a batch, padded to its longest.
    """

    def __init__(self, model: "SentenceTransformer", texts: Sequence[str], batch_size: int) -> None:
        self._model = model
        lengths = [len(ids) for ids in model.tokenizer(list(texts))["input_ids"]]
        order = sorted(range(len(texts)), key=lambda n: -lengths[n])
        self._batches = [
            model.preprocess([texts[n] for n in order[start : start + batch_size]])
            for start in range(0, len(order), batch_size)
        ]

    def run(self) -> int:
        """All batches once; how many vectors."""
        import torch

        with torch.inference_mode():
            found = [self._model(dict(batch))["sentence_embedding"] for batch in self._batches]
        return sum(map(len, found))


class PictureForward:
    """The picture tower's forward over tensors that were prepared beforehand: the limit.

    Args:
        pictures: Picture files.
        batch_size: Pictures in a batch.
        dtype: Precision.
    """

    def __init__(self, pictures: Sequence[Path], batch_size: int, dtype: str) -> None:
        import open_clip
        import torch

        precision = {"float32": "fp32", "bfloat16": "bf16"}[dtype]
        self._model, _, transform = open_clip.create_model_and_transforms(
            PICTURE_MODEL, pretrained=None, precision=precision
        )
        self._model.eval()
        pixels = torch.stack([transform(Image.open(path).convert("RGB")) for path in pictures])
        pixels = pixels.to(getattr(torch, dtype))  # [n, 3, side, side]
        starts = range(0, len(pixels), batch_size)
        self._batches = [pixels[start : start + batch_size] for start in starts]

    def run(self) -> int:
        """All batches once; how many vectors."""
        import torch

        with torch.inference_mode():
            return sum(len(self._model.encode_image(batch)) for batch in self._batches)


def precision_cost(
    exact: NDArray[np.float32], rounded: NDArray[np.float32], *, k: int = 10
) -> dict[str, float]:
    """What a lower precision costs: cosines to the exact vectors, and neighbours it keeps.

    Args:
        exact: ``[n, D]`` vectors, none of them zero.
        rounded: ``[n, D]``, the same items' at lower precision.
        k: Neighbours of an item that are compared.

    Returns:
        ``cosine_mean`` and ``cosine_min`` between an item's two vectors, and ``recall``: the
        share of an item's k nearest by exact vectors that are among its k nearest by the others.
    """
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (exact, rounded))
    cosines = (a * b).sum(axis=1)
    nearest = [_nearest(x, min(k, len(x) - 1)) for x in (a, b)]
    kept = [len(set(x) & set(y)) / len(x) for x, y in zip(*nearest, strict=True)]
    return {
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
        "recall": float(np.mean(kept)),
    }


def _nearest(unit: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    cosines = unit @ unit.T  # [n, n]
    np.fill_diagonal(cosines, -np.inf)
    return np.argpartition(-cosines, k - 1, axis=1)[:, :k]
