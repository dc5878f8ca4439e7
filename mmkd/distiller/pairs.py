"""Pairs of a batch: items [B, L] to a list of real pairs, and the targets the list carries.

A list rather than [B, L, L]: padding costs nothing and each unordered pair is computed once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CorrelationTargets:
    """One modality's supervision of one batch: every unordered pair of real, present items once.

    Attributes:
        sequence: [P] int64, the pair's row b of the batch.
        first: [P] int64, column i of ``items[b]``.
        second: [P] int64, column j > i; ``items[b, i] != items[b, j]``.
        holistic: [P] float32.
        dissected: [P, facets] float32.
        assign: [N, facets] to codes, [N] int64 (hard) or [N, K] float32 (soft).
        kept: share of the batch's pairs that ``max_pairs`` left, for losses that sum over pairs.
    """

    sequence: Tensor
    first: Tensor
    second: Tensor
    holistic: Tensor
    dissected: Tensor
    assign: Callable[[Tensor], Tensor]
    kept: float = 1.0

    @property
    def codes(self) -> Tensor:
        """Correlation types of all pairs, [P] or [P, K]; made here, at each reading."""
        return exact_codes(self.dissected, self.assign)


def exact_codes(dissected: Tensor, assign: Callable[[Tensor], Tensor]) -> Tensor:
    """Codes of pairs in full precision, also where the student computes in half.

    They are made where they are read: of 300,000 pairs and 50 codes they take 60 MB a modality,
    eight times what they are made from.

    Args:
        dissected: [N, facets].
        assign: see ``CorrelationTargets``.

    Returns:
        [N] int64 or [N, K] float32.
    """
    with torch.no_grad(), torch.autocast(dissected.device.type, enabled=False):
        return assign(dissected)


def real_pairs(items: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every unordered pair of distinct real items inside one sequence, once.

    Args:
        items: [B, L] int64.
        real: [B, L] bool, the positions that count.

    Returns:
        sequence, first, second: each [P] int64 with ``first < second``.
    """
    length = items.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=items.device).triu_(1)
    pairs = real[:, :, None] & real[:, None, :] & later  # [B, L, L]
    pairs &= items[:, :, None] != items[:, None, :]
    sequence, first, second = pairs.nonzero(as_tuple=True)
    return sequence, first, second
