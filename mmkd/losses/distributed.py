"""Means over all processes, and rows of all processes, with the gradients of a single one.

From this process's sums, counts and rows to what one process that held everything would have: DDP
averages gradients, so each term is scaled here to make that average the true one.
"""

import math
from typing import Any

import torch
import torch.distributed
from torch import Tensor


def global_mean(total: Tensor, count: Tensor | int) -> Tensor:
    """The mean whose gradient, averaged over processes by DDP, is that of a single process.

    Counts differ between processes (padding, missing modalities), so the mean of the local means
    is not the global one. Here ``total * world_size / sum of counts``: averaged over processes it
    is the sum of totals over the sum of counts.

    Args:
        total: scalar sum over the local terms; carries the gradient.
        count: the number of local terms.

    Returns:
        Scalar; 0, still connected to the graph, where no process has a term. Without
        ``torch.distributed``, plainly ``total / count``.
    """
    terms = torch.as_tensor(count, dtype=torch.float32, device=total.device).detach()
    world_size = 1
    if _several():
        terms = terms.clone()
        torch.distributed.all_reduce(terms)
        world_size = torch.distributed.get_world_size()
    factor = torch.where(terms > 0, world_size / terms.clamp(min=1e-12), 0.0)
    return total * factor.to(total.dtype)


def gather_rows(rows: Tensor, dim: int) -> tuple[Tensor, int]:
    """Every process's rows side by side, with gradients to where they came from.

    Args:
        rows: This process's; only the size of ``dim`` may differ between processes.
        dim: Along which they are joined.

    Returns:
        All rows, in the processes' order, and the index of this process's first. Without
        ``torch.distributed``, ``rows`` itself and 0.
    """
    if not _several():
        return rows, 0
    mine = torch.tensor([rows.shape[dim]], device=rows.device)
    counts = [torch.zeros_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(counts, mine)
    sizes = [int(count) for count in counts]
    first = sum(sizes[: torch.distributed.get_rank()])
    gathered: Tensor = _Gather.apply(rows, dim, sizes, first)
    return gathered, first


def weight_problems(**weights: float | None) -> list[str]:
    """A line for each weight of a loss that is not 0 or more; None is not judged."""
    return [
        f"{name}: got {weight}, wanted 0 or more; 0 leaves the term out"
        for name, weight in weights.items()
        if weight is not None and not 0 <= weight < math.inf
    ]


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


class _Gather(torch.autograd.Function):
    """The backward pass adds what every process's loss has to say about this one's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, dim: int, sizes: list[int], first: int) -> Tensor:
        ctx.dim, ctx.first, ctx.size = dim, first, rows.shape[dim]
        lead = rows.movedim(dim, 0)
        padded = lead.new_zeros(max(sizes), *lead.shape[1:])  # all_gather wants equal shapes
        padded[: len(lead)] = lead
        parts = [torch.empty_like(padded) for _ in sizes]
        torch.distributed.all_gather(parts, padded)
        joined = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
        return joined.movedim(0, dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        total = gradients[0].contiguous()
        torch.distributed.all_reduce(total)
        return total.narrow(ctx.dim, ctx.first, ctx.size), None, None, None
