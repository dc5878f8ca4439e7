"""Sums over item pairs, chunk by chunk: rows [N, D] and a pair list to a scalar.

At 300k pairs every intermediate [P, D] tensor is 80 MB of fresh memory, and its page faults cost
several times the arithmetic. Chunks of whole sequences stay in the processor's cache; each one's
gradient is formed right after its value, so that no chunk is kept for the backward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmkd.distiller.pairs import CorrelationTargets, exact_codes

_CHUNK_PAIRS = 4096


@dataclass(frozen=True)
class PairList:
    """Pairs of rows, sorted by sequence, with their targets.

    Attributes:
        sequence: [P] int64, ascending.
        first: [P] int64, index of a row.
        second: [P] int64, index of a row.
        holistic: [P] float32.
        dissected: [P, facets] float32.
        assign: see ``CorrelationTargets``.
        kept: see ``CorrelationTargets``.
    """

    sequence: Tensor
    first: Tensor
    second: Tensor
    holistic: Tensor
    dissected: Tensor
    assign: Callable[[Tensor], Tensor]
    kept: float

    @property
    def codes(self) -> Tensor:
        """Correlation types [P] int64 or [P, K] float32, for this chunk only."""
        return exact_codes(self.dissected, self.assign)


def used_positions(targets: CorrelationTargets, shape: torch.Size) -> tuple[Tensor, PairList]:
    """The positions of a batch that are in some pair, and the pairs between them.

    Args:
        targets: of the batch.
        shape: (B, L) of its items.

    Returns:
        Flat indices [N] into the B*L positions, ascending, and the pairs as indices 0..N-1.
    """
    batch, length = shape
    row = targets.sequence * length
    first, second = row + targets.first, row + targets.second
    used = torch.zeros(batch * length, dtype=torch.bool, device=row.device)
    used[first] = True
    used[second] = True
    index = used.cumsum(0) - 1  # [B*L]
    pairs = PairList(
        targets.sequence,
        index[first],
        index[second],
        targets.holistic,
        targets.dissected,
        targets.assign,
        targets.kept,
    )
    return used.nonzero().squeeze(1), pairs


def sum_over_pairs(
    term: Callable[[Tensor, PairList], Tensor],
    rows: Tensor,
    pairs: PairList,
    parameters: Sequence[Tensor],
) -> Tensor:
    """``term(rows, pairs)``, in chunks on the CPU.

    Args:
        term: a scalar that is a sum over sequences; differentiable in its rows and ``parameters``.
        rows: [N, D].
        pairs: between the rows.
        parameters: every tensor that ``term`` reads and that may want a gradient.

    Returns:
        Scalar. Its gradient is correct to first order; there is no second.
    """
    if rows.device.type != "cpu" or len(pairs.first) <= _CHUNK_PAIRS:
        return term(rows, pairs)
    if torch.is_grad_enabled():
        total: Tensor = _ChunkedSum.apply(term, pairs, rows, *parameters)
        return total
    return torch.stack([term(rows[lo:hi], chunk) for lo, hi, chunk in _chunks(pairs)]).sum()


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        term: Callable[[Tensor, PairList], Tensor],
        pairs: PairList,
        rows: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        total = rows.new_zeros((), dtype=torch.float32)
        rows_gradient = torch.zeros_like(rows)
        wanted = [p for p in parameters if p.requires_grad]
        gradients = [torch.zeros_like(p) for p in wanted]
        for lo, hi, chunk in _chunks(pairs):
            with torch.enable_grad():
                leaf = rows[lo:hi].detach().requires_grad_()
                value = term(leaf, chunk)
            leaf_gradient, *rest = torch.autograd.grad(value, [leaf, *wanted])
            rows_gradient[lo:hi] += leaf_gradient
            for gradient, part in zip(gradients, rest, strict=True):
                gradient += part
            total += value.detach()
        filled = iter(gradients)
        ctx.save_for_backward(
            rows_gradient, *(next(filled) if p.requires_grad else None for p in parameters)
        )
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if g is None else g * outer[0].to(g.dtype) for g in ctx.saved_tensors)
        return (None, None, *scaled)


def _chunks(pairs: PairList) -> list[tuple[int, int, PairList]]:
    """Whole sequences, about _CHUNK_PAIRS pairs at a time, each with its range of rows."""
    counts = torch.bincount(pairs.sequence)
    ends = counts.cumsum(0)
    last = torch.ones_like(ends, dtype=torch.bool)
    last[:-1] = ends[1:] // _CHUNK_PAIRS != ends[:-1] // _CHUNK_PAIRS
    chunks: list[tuple[int, int, PairList]] = []
    start = 0
    for end in ends[last].tolist():
        if end == start:
            continue
        cut = slice(start, end)
        first, second = pairs.first[cut], pairs.second[cut]
        lo, hi = int(first.min()), int(second.max()) + 1  # a sequence's rows lie together
        chunk = PairList(
            pairs.sequence[cut],
            first - lo,
            second - lo,
            pairs.holistic[cut],
            pairs.dissected[cut],
            pairs.assign,
            pairs.kept,
        )
        chunks.append((lo, hi, chunk))
        start = end
    return chunks
