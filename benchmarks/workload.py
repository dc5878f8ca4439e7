"""A batch at beauty's size, made up: [B] sequences of item rows and teacher vectors [V+1, d].

The lengths follow Amazon Beauty (5-core, 22,363 users): a user's training events when the last two
are held out. Which items and which vectors they are does not change what a step costs, so no data
set is needed.
"""

import numpy as np
from numpy.typing import NDArray

ITEM_COUNT = 12_101
USER_COUNT = 22_363
PREFIX_COUNT = 131_413  # sum over users of (training events - 1): samples when each prefix is one
MAX_LENGTH = 50

# quantiles of the training events per user, and how many: [quantile, length]
_LENGTH_QUANTILES = (
    (0.00, 2.5),
    (0.45, 3.5),
    (0.50, 4.0),
    (0.75, 7.0),
    (0.90, 12.0),
    (0.95, 19.0),
    (0.99, 41.0),
    (1.00, 50.0),
)


def sequences(*, count: int, seed: int = 0) -> list[list[int]]:
    """Sequences of item rows 1..12101, 3 to 50 events each, mean near 6.7.

    Each batch holds at least one of full length, as nearly every batch of 256 real users does.
    """
    generator = np.random.default_rng(seed)
    quantiles, values = zip(*_LENGTH_QUANTILES, strict=True)
    lengths = np.interp(generator.random(count), quantiles, values).round().astype(np.int64)
    lengths[0] = MAX_LENGTH
    # a few popular items, a long tail; distinct inside a sequence as in beauty
    weights = 1.0 / np.arange(10, ITEM_COUNT + 10)
    weights /= weights.sum()
    return [
        (generator.choice(ITEM_COUNT, size=n, replace=False, p=weights) + 1).tolist()
        for n in lengths
    ]


def teacher(*, width: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors [V+1, width] around 200 centres, row 0 zero."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((200, width))
    vectors = centres[generator.integers(200, size=ITEM_COUNT + 1)]
    vectors += generator.standard_normal(vectors.shape)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[0] = 0
    return vectors.astype(np.float32)
