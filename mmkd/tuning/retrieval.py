"""Which epoch is best: validation pairs to how high an item's companion ranks by cosine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from mmkd.data.splits import SequenceSplit
from mmkd.evaluation.metrics import metrics_from_ranks
from mmkd.evaluation.teacher import validation_pairs

_CUTOFF = 10
_CHUNK = 512


@dataclass(frozen=True)
class Retrieval:
    """Ranks each validation pair's second item among all items of these pairs, by its first.

    Attributes:
        rows: [n] distinct rows of the pairs' items.
        first: [P] places in ``rows``.
        second: [P] places in ``rows``.
        content: [n] equal where two items have the same content; such are no candidates of each
            other.
    """

    rows: NDArray[np.int64]
    first: Tensor
    second: Tensor
    content: Tensor

    @classmethod
    def of(
        cls,
        split: SequenceSplit,
        present: NDArray[np.bool_],
        content: NDArray[np.int64],
        *,
        count: int | None,
        seed: int,
    ) -> "Retrieval":
        """Some of a split's validation pairs.

        Args:
            split: Its test cases are not read.
            present: [I+1] which items the encoder can read.
            content: [I+1] equal where two items have the same content.
            count: At most so many pairs, drawn; None takes all.
            seed: Draws.

        Raises:
            EvaluationError: There is no pair.
        """
        first, second, _ = validation_pairs(split, present)
        drawn = np.sort(np.random.default_rng(seed).permutation(len(first))[:count])
        rows, places = np.unique(np.stack([first[drawn], second[drawn]]), return_inverse=True)
        one, other = torch.from_numpy(places.reshape(2, -1))
        return cls(rows, one, other, torch.from_numpy(content[rows]))

    def __call__(self, vectors_of: Callable[[NDArray[np.int64]], Tensor]) -> dict[str, float]:
        """HR, NDCG and MRR at 10.

        Args:
            vectors_of: From rows [n] to their vectors [n, D].
        """
        unit = F.normalize(vectors_of(self.rows).float().cpu(), dim=-1)
        ranks, ties = [], []
        for part in torch.arange(len(self.first)).split(_CHUNK):  # type: ignore[no-untyped-call]
            first, second = self.first[part], self.second[part]
            scores = unit[first] @ unit.T  # [p, n]
            own = scores.gather(1, second[:, None])
            alike = self.content == self.content[first][:, None]
            alike |= torch.arange(len(self.rows)) == second[:, None]
            scores = scores.masked_fill(alike, -torch.inf)
            tied = (scores == own).sum(1)
            ranks.append(1 + (scores > own).sum(1) + tied / 2)
            ties.append(tied)
        return metrics_from_ranks(torch.cat(ranks), (_CUTOFF,), ties=torch.cat(ties))


def joined(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Metrics of towers as one mapping: those of one as they are, of several their means first.

    >>> joined({"text": {"NDCG@10": 0.5}, "image": {"NDCG@10": 0.25}})["NDCG@10"]
    0.375

    Args:
        found: A tower's name to its metrics, the same ones.

    Returns:
        The means by the metrics' names; of several towers also each one's, such as
        ``text.NDCG@10``.
    """
    names = next(iter(found.values()))
    means = {name: sum(one[name] for one in found.values()) / len(found) for name in names}
    if len(found) == 1:
        return means
    return means | {f"{at}.{name}": one[name] for at, one in found.items() for name in one}
