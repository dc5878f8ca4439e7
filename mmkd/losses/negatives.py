"""Negatives: how often items train to draws [n] of them, and to how likely each draw was.

By cumulative weights in float64 and a binary search: exact for any catalogue, where
``torch.multinomial`` ends at 2^24 items and sums its weights in their own precision.
"""

import math
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmkd.errors import checked, one_of

Candidates = Literal["all", "trained"]
Sampling = Literal["uniform", "popularity"]
Counts = Tensor | NDArray[np.int64]


class NegativeSampler(nn.Module):
    """Draws items with replacement, each draw in proportion to the items' weights.

    >>> import torch
    >>> from mmkd.losses.negatives import NegativeSampler
    >>> sampler = NegativeSampler(train_counts=torch.tensor([0, 3, 0, 1]))  # weights 4, 1, 2
    >>> draws = sampler.draw(5, generator=torch.Generator().manual_seed(0))
    >>> draws.shape, round(float(sampler.log_q(torch.tensor([1])).exp()), 4)
    (torch.Size([5]), 0.5714)

    Args:
        train_counts: How often each item trains, [I + 1]; row 0 is ignored.
        sampling: ``uniform``, or ``popularity`` (proportional to the training count + 1).
        candidates: ``all`` items may be drawn, or the ``trained`` ones only, which occur in
            training.

    Raises:
        ValueError: An option is unknown.
    """

    cumulative: Tensor | None  # [I] float64; None: all items are equally likely

    @checked
    def __init__(
        self,
        *,
        train_counts: Counts,
        sampling: Sampling = "popularity",
        candidates: Candidates = "all",
    ) -> None:
        super().__init__()
        counts = torch.as_tensor(train_counts)[1:].double()  # [I]
        self.item_count = len(counts)
        self.candidate_count = self.item_count
        cumulative = None
        if sampling == "popularity" or candidates == "trained":
            weights = torch.ones_like(counts) if sampling == "uniform" else counts + 1
            if candidates == "trained":
                weights[counts <= 0] = 0
                self.candidate_count = int((counts > 0).sum())
            cumulative = weights.cumsum(0)
        self.register_buffer("cumulative", cumulative, persistent=False)

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        known = {"candidates": get_args(Candidates), "sampling": get_args(Sampling)}
        return [
            line
            for name, choices in known.items()
            if name in options
            for line in one_of(choices, **{name: options[name]})
        ]

    def draw(self, count: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw items, [count] int64 in 1..I.

        Args:
            count: n.
            generator: A CPU generator; None draws from torch's own, on this module's device.
        """
        device = None if self.cumulative is None else self.cumulative.device
        at = device if generator is None else None
        u = torch.rand(count, dtype=torch.float64, generator=generator, device=at).to(device)
        if self.cumulative is None:
            return (u * self.item_count).long().clamp_(max=self.item_count - 1) + 1
        total = self.cumulative[-1]
        # just below the total: a product that is rounded up to it would be no item's
        point = (u * total).clamp_(max=torch.nextafter(total, total.new_zeros(())))
        return torch.searchsorted(self.cumulative, point, right=True) + 1

    def log_q(self, items: Tensor) -> Tensor:
        """Log of the probability that one draw is each of these items, float32.

        Args:
            items: Any shape, int64 in 1..I; one that can't be drawn has -inf.
        """
        if self.cumulative is None:
            return torch.full(items.shape, -math.log(self.item_count), device=items.device)
        upper = self.cumulative[items - 1]
        lower = torch.where(items > 1, self.cumulative[(items - 2).clamp(min=0)], 0.0)
        return ((upper - lower).log() - self.cumulative[-1].log()).float()
