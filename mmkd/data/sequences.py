"""Users' events in time order, and which of them train, validate and test.

From a split protocol (`mmkd.data.splits`) to the batches and the evaluator.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cases:
    """N evaluation cases: predict a user's event from all of that user's events before it.

    Attributes:
        user: [N] int64 in 0..U-1.
        position: [N] int64, index into the user's own sequence, at least 1.
    """

    user: NDArray[np.int64]
    position: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.user)


@dataclass(frozen=True)
class SequenceSplit:
    """E events of U users, user after user, each user's in time order.

    Attributes:
        items: [E] int64 rows in 1..I.
        offsets: [U+1] int64; user u's events are ``items[offsets[u]:offsets[u + 1]]``.
        train_end: [U] int64; the first ``train_end[u]`` events of user u train.
        valid: Cases for model selection.
        test: Cases to be read once, at the end.
        item_count: I.
    """

    items: NDArray[np.int64]
    offsets: NDArray[np.int64]
    train_end: NDArray[np.int64]
    valid: Cases
    test: Cases
    item_count: int

    @property
    def user_count(self) -> int:
        """U."""
        return len(self.offsets) - 1

    def sequence(self, user: int) -> NDArray[np.int64]:
        """All events of one user, [n] int64, oldest first."""
        events: NDArray[np.int64] = self.items[self.offsets[user] : self.offsets[user + 1]]
        return events

    def target_items(self, cases: Cases) -> NDArray[np.int64]:
        """The item each case asks for, [N] int64."""
        targets: NDArray[np.int64] = self.items[self.offsets[cases.user] + cases.position]
        return targets

    def is_train(self) -> NDArray[np.bool_]:
        """Which events train, [E] bool."""
        lengths = np.diff(self.offsets)  # [U]
        position = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], lengths)
        trains: NDArray[np.bool_] = position < np.repeat(self.train_end, lengths)
        return trains

    def train_counts(self) -> NDArray[np.int64]:
        """How often each item occurs in training events, [I+1] int64, row 0 zero."""
        trained = self.items[self.is_train()]
        return np.bincount(trained, minlength=self.item_count + 1)
