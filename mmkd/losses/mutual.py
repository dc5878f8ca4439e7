"""Mutual distillation: states [M, D] and item matrices [I, D] of N networks to one loss.

EMKD (arXiv:2304.14668), section 4.4: at each supervised position, every two networks are held to
each other's softened predictions over the catalogue. At its size the logits [N, M, I] would be
gigabytes, so they are made once, for the cross-entropy too, and in chunks: a chunk stays in the
processor's cache, and its gradient is formed right after its value, in closed form:

    d/dz_x = (softmax(z_x) - onehot) / N + weight / (2 N tau) * (N p_x - sum over y of p_y)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.errors import checked, positive
from mmkd.losses.distributed import global_mean, weight_problems
from mmkd.losses.recommendation import autocast_together, chunk_rows


class MutualLoss(nn.Module):
    """Cross-entropy and mutual distillation of all networks, from logits that are made once.

    >>> from mmkd import MutualLoss
    >>> import torch
    >>> states, matrix, target = torch.randn(5, 4), torch.randn(10, 4), torch.arange(1, 6)
    >>> total, cross_entropy, mutual = MutualLoss()([states] * 3, [matrix] * 3, target)
    >>> round(abs(float(mutual)), 4)  # equal networks have nothing to tell each other
    0.0

    Args:
        weight: What the distillation counts in the objective.
        temperature: tau.

    Raises:
        ValueError: ``weight`` is below 0 or the temperature isn't above.
    """

    @checked
    def __init__(self, *, weight: float = 0.001, temperature: float = 1.0) -> None:
        super().__init__()
        self.weight = weight
        self.temperature = temperature

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        return [
            *weight_problems(weight=options.get("weight")),
            *positive("such as 1.0", temperature=options.get("temperature")),
        ]

    def forward(
        self, states: Sequence[Tensor], item_matrices: Sequence[Tensor], target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Means over the global batch's positions.

        Args:
            states: N times [M, D], at supervised positions.
            item_matrices: N times [I, D].
            target: [M] int64 in 1..I; or [N, M] where each network has its own.

        Returns:
            ``cross_entropy + weight * mutual / N`` with a graph; and the two without: the mean
            cross-entropy of a network, and the sum over pairs of networks.
        """
        total, cross_entropy, mutual = joint_softmax(
            states, item_matrices, target - 1, temperature=self.temperature, weight=self.weight
        )
        count = target.shape[-1]
        return (
            global_mean(total, count),
            global_mean(cross_entropy, count),
            global_mean(mutual, count),
        )


def joint_softmax(
    states: Sequence[Tensor],
    item_matrices: Sequence[Tensor],
    column: Tensor,
    *,
    temperature: float,
    weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over positions.

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
        buffers = [torch.empty(room, dtype=exact, device=column.device) for _ in range(3)]
        for lo in range(0, positions, rows):
            at = slice(lo, min(lo + rows, positions))
            shape = (networks, at.stop - lo, items)
            z, log_p, p = (b[: shape[0] * shape[1] * items].view(shape) for b in buffers)
            for n in range(networks):
                _product(states[n][at], matrices[n].mT, out=z[n])
            index = column[:, at, None]  # [N, c, 1]
            norm = z.logsumexp(-1, keepdim=True)
            cross_entropy += (norm - z.gather(-1, index)).sum() / networks
            mutual += _mutual(z, norm, temperature, log_p=log_p, p=p)
            if not wants:
                continue
            together = p.sum(0)  # [c, I]
            pull = weight / (2 * networks * temperature)
            slope = torch.exp(z.sub_(norm), out=z).div_(networks)
            slope.add_(p, alpha=pull * networks).sub_(together, alpha=pull)
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


def _mutual(z: Tensor, norm: Tensor, temperature: float, *, log_p: Tensor, p: Tensor) -> Tensor:
    """The mutual KL of a chunk, summed; writes the softened predictions to ``log_p`` and ``p``."""
    if temperature == 1.0:
        torch.sub(z, norm, out=log_p)
    else:
        torch.div(z, temperature, out=log_p)
        log_p -= log_p.logsumexp(-1, keepdim=True)
    torch.exp(log_p, out=p)
    own = torch.dot(p.flatten(), log_p.flatten()) * len(z)
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
