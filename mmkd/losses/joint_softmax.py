"""The softmax over the catalogue of N networks at once: states [M, D], matrices [I, D] to one loss.

Logits [N, M, I] would be gigabytes. They are made in chunks that stay in the processor's cache, and
a chunk's gradient is formed right after its value, in closed form:

    d/dz_x = (softmax(z_x) - onehot) / N + weight / (2 N tau) * (N p_x - sum over y of p_y)

with p the softmax at the temperature of the mutual distillation (``mmkd.losses.mutual``).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# logits a chunk, all networks together. Each chunk adds to the matrices' gradients, so fewer chunks
# are less traffic, while its own passes want the processor's cache
_CPU_LOGITS = 4_000_000
_OTHER_LOGITS = 100_000_000


def chunk_rows(logits_a_row: int, device: str) -> int:
    """Positions a chunk, where all logits of a chunk are held and their gradient formed by hand."""
    return max(16, (_CPU_LOGITS if device == "cpu" else _OTHER_LOGITS) // logits_a_row)


def autocast_together(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast would cast them for a matmul, for what it doesn't look into."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def joint_softmax(
    states: Sequence[Tensor],
    item_matrices: Sequence[Tensor],
    column: Tensor,
    *,
    temperature: float = 1.0,
    weight: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The cross-entropy of all networks and what they hold each other to, summed over positions.

    The mutual KL is the ``sum over pairs {x, y} of (KL(p_y || p_x) + KL(p_x || p_y)) / 2``, p the
    softmax outputs at the temperature. In each KL the first one teaches and gets no gradient.

    Args:
        states: N times [M, D].
        item_matrices: N times [I, D].
        column: [M] int64, the target's row of the matrices; or [N, M].
        temperature: tau of the mutual KL.
        weight: What the mutual KL counts in the first sum.

    Returns:
        ``cross_entropy + weight * mutual / N``, which has a gradient (to first order); the
        cross-entropy, a mean over networks, and the mutual KL, a sum over pairs, without one.
    """
    tensors = autocast_together(*states, *item_matrices)
    total: Tensor
    total, cross_entropy, mutual = _JointSoftmax.apply(
        column, temperature, weight, len(states), *tensors
    )
    return total, cross_entropy, mutual


class _JointSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, column: Tensor, temperature: float, weight: float, networks: int, *tensors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        states, matrices = tensors[:networks], tensors[networks:]
        exact = states[0].dtype if states[0].dtype == torch.float64 else torch.float32
        wants = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(t, dtype=exact) for t in tensors] if wants else []
        column = column.expand(networks, -1)  # [N, M]
        positions, items = column.shape[1], len(matrices[0])
        cross_entropy = torch.zeros((), dtype=exact, device=column.device)
        mutual = torch.zeros_like(cross_entropy)
        rows = chunk_rows(networks * items, column.device.type)
        room = networks * min(rows, positions) * items
        # reused by every chunk: fresh memory of this size costs more than the arithmetic
        buffers = [
            torch.empty(room, dtype=exact, device=column.device)
            for _ in range(3 if networks > 1 else 2)
        ]
        for lo in range(0, positions, rows):
            at = slice(lo, min(lo + rows, positions))
            shape = (networks, at.stop - lo, items)
            z, log_q, *rest = (b[: shape[0] * shape[1] * items].view(shape) for b in buffers)
            for n in range(networks):
                _product(states[n][at], matrices[n].mT, out=z[n])
            torch.log_softmax(z, -1, out=log_q)
            index = column[:, at, None]  # [N, c, 1]
            cross_entropy -= log_q.gather(-1, index).sum() / networks
            for p in rest:  # one network has none to learn from
                mutual += _mutual(log_q, temperature, log_p=z, p=p)
            if not wants:
                continue
            slope = torch.exp(log_q, out=log_q).div_(networks)
            for p in rest:
                pull = weight / (2 * networks * temperature)
                slope.add_(p, alpha=pull * networks).sub_(p.sum(0), alpha=pull)
            slope.scatter_add_(-1, index, slope.new_full(index.shape, -1 / networks))
            for n in range(networks):
                slopes = slope[n].to(states[n].dtype)
                _product(slopes, matrices[n], out=gradients[n][at])
                _add_product(gradients[networks + n], slopes.mT, states[n][at])
        kept = [g.to(t.dtype) for g, t in zip(gradients, tensors, strict=True)] if wants else []
        ctx.save_for_backward(*kept)
        ctx.mark_non_differentiable(cross_entropy, mutual)
        return cross_entropy + weight * mutual / networks, cross_entropy, mutual

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, None, *(outer[0] * g for g in ctx.saved_tensors))


def _mutual(log_q: Tensor, temperature: float, *, log_p: Tensor, p: Tensor) -> Tensor:
    """The mutual KL of a chunk, summed: ``log_p`` holds its logits, ``p`` gets their softmax."""
    if temperature == 1.0:
        log_p = log_q
    else:
        log_p.div_(temperature)
        log_p.sub_(log_p.logsumexp(-1, keepdim=True))
    torch.exp(log_p, out=p)
    own = torch.dot(p.flatten(), log_p.flatten()) * len(p)
    return 0.5 * (own - torch.dot(p.sum(0).flatten(), log_p.sum(0).flatten()))


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    if left.dtype == out.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
