"""Small teacher tables for the distiller's tests."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Table:
    vectors: NDArray[np.float32]
    present: NDArray[np.bool_]


def random_table(
    items: int, dim: int, *, missing: tuple[int, ...] = (), seed: int = 0, mean: float = 0.0
) -> Table:
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(items + 1, dim)) + mean).astype(np.float32)
    present = np.ones(items + 1, dtype=np.bool_)
    present[[0, *missing]] = False
    vectors[~present] = 0
    return Table(vectors, present)
