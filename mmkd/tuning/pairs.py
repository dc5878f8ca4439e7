"""Training pairs: the items that users took near each other in training events.

From a split to the pairs of an epoch, a pure function of (seed, epoch). No event that validates or
tests is read.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmkd.data.splits import SequenceSplit
from mmkd.errors import DataError


@dataclass(frozen=True)
class TrainingPairs:
    """P ordered pairs of two different items of one user's training events.

    >>> import numpy as np
    >>> from mmkd import InteractionLog, TrainingPairs
    >>> from mmkd.data import leave_one_out
    >>> log = InteractionLog(np.zeros(6, int), np.array([1, 2, 3, 4, 5, 6]), np.arange(6.0), ("a",))
    >>> split = leave_one_out(log, item_count=6)  # 5 validates, 6 tests
    >>> TrainingPairs.of(split, np.arange(7) > 0, window=2).rows.tolist()
    [[1, 2], [2, 3], [3, 4], [1, 3], [2, 4]]

    Attributes:
        rows: [P, 2] int64, the earlier item first.
        weights: [P] float64 with sum 1: how likely each is drawn.
    """

    rows: NDArray[np.int64]
    weights: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        split: SequenceSplit,
        present: NDArray[np.bool_],
        *,
        window: int = 1,
        popularity_power: float = 0.0,
    ) -> "TrainingPairs":
        """The pairs of a split's training events.

        Args:
            split: Where the events are.
            present: [I+1] which items the encoder can read.
            window: How many training events apart a pair's may be.
            popularity_power: See ``TuningArguments``.

        Raises:
            DataError: There is no pair.
        """
        owner = np.repeat(np.arange(split.user_count), np.diff(split.offsets))
        trains = split.is_train()
        items, owner = split.items[trains], owner[trains]
        parts = []
        for apart in range(1, min(window, max(len(items) - 1, 0)) + 1):
            first, second = items[:-apart], items[apart:]
            kept = (owner[:-apart] == owner[apart:]) & (first != second)
            kept &= present[first] & present[second]
            parts.append(np.stack([first[kept], second[kept]], axis=1))
        rows = np.concatenate([np.empty((0, 2), np.int64), *parts])
        if not len(rows):
            raise DataError(
                f"no pair to learn from: in {len(items)} training events no user has two different "
                f"items with content within {window} of each other; give a log with longer "
                "histories, raise tune's window, or use the encoder as it is"
            )
        counts = split.train_counts().astype(np.float64)
        weights = (counts[rows[:, 0]] * counts[rows[:, 1]]) ** -popularity_power
        return cls(rows, weights / weights.sum())

    def epoch(self, epoch: int, *, count: int | None, seed: int) -> NDArray[np.int64]:
        """[n, 2] the pairs of an epoch, in random order.

        Each pair at most once where all are alike; otherwise drawn with replacement.

        Args:
            epoch: From 0.
            count: n; None, or more than there are, takes P.
            seed: Draws.
        """
        rng = np.random.default_rng((seed, epoch))
        n = len(self.rows) if count is None else min(count, len(self.rows))
        if np.ptp(self.weights) == 0:
            return self.rows[rng.permutation(len(self.rows))[:n]]
        return self.rows[rng.choice(len(self.rows), size=n, p=self.weights)]
