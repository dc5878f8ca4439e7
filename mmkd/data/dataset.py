"""Digests of what a run trains on, so that a resumed or evaluated run notices other data."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmkd.data import InteractionLog, ItemTable, SequenceSplit


def data_digests(
    *, item_ids: Sequence[str], user_ids: Sequence[str], split: SequenceSplit
) -> dict[str, str]:
    """One SHA-256 for each thing that may change by itself.

    Args:
        item_ids: The catalogue's ids in row order.
        user_ids: The users' ids in row order.
        split: The users' sequences and what of them trains, validates and tests.

    Returns:
        ``catalogue``, ``users``, ``events`` and ``split``: name to hexadecimal digest.
    """
    valid, test = split.valid, split.test
    return {
        "catalogue": _of_texts(item_ids),
        "users": _of_texts(user_ids),
        "events": _of_arrays(split.items, split.offsets),
        "split": _of_arrays(split.train_end, valid.user, valid.position, test.user, test.position),
    }


def _of_texts(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little"))  # or "a","bc" would equal "ab","c"
        digest.update(content)
    return digest.hexdigest()


def _of_arrays(*arrays: NDArray[np.int64]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """What ``load_data`` returns."""

    items: ItemTable
    log: InteractionLog
    split: SequenceSplit
