"""The embedding run that `embed_faults.py` kills: a slow, deterministic encoder with a log."""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mmkd.data import ItemTable
from mmkd.embeddings import EmbeddingCache, EmbeddingTable
from mmkd.encoders import EncoderCard
from mmkd.trust import trust_code

trust_code("benchmarks")  # the encoder below

DIM = 32
BATCH = 32
_WORDS = "a plot of some length told in words that are all the same".split()


class LoggedText:
    """A vector per text from its hash; appends each item's number to a log once it is encoded.

    Args:
        log: The file; None keeps no log.
        pause_s: Seconds an item takes.
        padding: Whether a vector also depends, in its last bits, on the longest text of its batch,
            as those of real models do.
    """

    version: ClassVar[int] = 1
    modality = "text"
    dim = DIM

    def __init__(
        self, *, log: Path | None = None, pause_s: float = 0.0, padding: bool = False
    ) -> None:
        self._log = log
        self._pause_s = pause_s
        self._padding = padding

    def encode(self, inputs: Sequence[Any], *, batch_size: int = 64) -> NDArray[np.float32]:
        """One vector a text, in batches of similar length."""
        vectors = np.zeros((len(inputs), DIM), np.float32)
        order = sorted(range(len(inputs)), key=lambda n: -len(inputs[n]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            time.sleep(self._pause_s * len(batch))
            for n in batch:
                vectors[n] = text_vector(inputs[n])
            if self._padding:
                vectors[batch] *= np.float32(1 + len(inputs[batch[0]]) * 2.0**-20)
            if self._log is not None:
                _append(self._log, "".join(f"{inputs[n].split()[1]}\n" for n in batch))
        return vectors


def text_vector(text: str) -> NDArray[np.float32]:
    """The vector of a text without the effect of padding, ``[DIM]``."""
    digest = hashlib.sha256(text.encode()).digest()
    return np.frombuffer(digest, np.uint8).astype(np.float32) / np.float32(255) - np.float32(0.5)


def catalogue(items: int) -> ItemTable:
    """Items 0..items-1, whose texts differ in length."""
    texts = [" ".join(["item", str(n), *(_WORDS * 5)[: n * 7919 % 61]]) for n in range(items)]
    ids = ("", *(str(n) for n in range(items)))
    nothing = (None,) * (items + 1)
    return ItemTable(ids, ids, (None, *texts), nothing, ((),) * (items + 1))


def embed(
    folder: Path,
    log: Path | None,
    *,
    items: int,
    shard_size: int,
    pause_s: float = 0.0,
    padding: bool = False,
) -> EmbeddingTable:
    """The catalogue's table from the cache in ``folder``; encodes what it lacks."""
    card = EncoderCard(
        name="logged",
        modality="text",
        kind="benchmarks.embed_run:LoggedText",
        options={"padding": padding},
    )
    return EmbeddingCache(folder, shard_size=shard_size).table(
        card,
        catalogue(items),
        encoder_factory=lambda: LoggedText(log=log, pause_s=pause_s, padding=padding),
        batch_size=BATCH,
    )


def _append(log: Path, lines: str) -> None:
    # one write to a file opened for appending: two processes' lines never mix
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, lines.encode())
    finally:
        os.close(descriptor)
