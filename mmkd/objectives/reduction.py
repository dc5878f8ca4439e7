"""Means over all processes: a local (total, count) to one process's share of the global mean."""

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
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        terms = terms.clone()
        torch.distributed.all_reduce(terms)
        world_size = torch.distributed.get_world_size()
    factor = torch.where(terms > 0, world_size / terms.clamp(min=1e-12), 0.0)
    return total * factor.to(total.dtype)
