"""Cross-entropy and mutual KL of N networks over the catalogue, logits made once and in chunks.

States [M, D] and item matrices [I, D] of each network to two sums. At the size of a catalogue the
logits [N, M, I] would be gigabytes; a chunk stays in the processor's cache, and its gradient is
formed right after its value, in closed form:

    d/dz_x = (softmax(z_x) - onehot) / N + weight / (2 N tau) * (N p_x - sum over y of p_y)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmkd.losses.distributed import check_temperature, check_weights, global_mean

# a chunk's logits: each chunk adds to the matrices' gradients, so fewer chunks are less traffic,
# while the chunk's own passes want the cache; 256 rows of 3 x 12k items (measured)
_CPU_LOGITS = 10_000_000
_OTHER_LOGITS = 100_000_000


def joint_softmax(
    states: Sequence[Tensor],
    item_matrices: Sequence[Tensor],
    column: Tensor,
    *,
    temperature: float,
    weight: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over positions.

    Args:
        states: N times [M, D].
        item_matrices: N times [I, D].
        column: [M] int64, the target's row of the matrices.
        temperature: tau of the mutual KL, see ``mmkd.losses.mutual.mutual_kl``.
        weight: What the mutual KL counts in the first sum.

    Returns:
        ``cross_entropy + weight * mutual / N``, which has a gradient (to first order); the
        cross-entropy, a mean over networks, and the mutual KL, a sum over pairs, without one.
    """
    networks = len(states)
    device = states[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        states = [h.to(dtype) for h in states]
        item_matrices = [matrix.to(dtype) for matrix in item_matrices]
    total: Tensor
    total, cross_entropy, mutual = _JointSoftmax.apply(
        column, temperature, weight, networks, *states, *item_matrices
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
        positions, items = len(column), len(matrices[0])
        cross_entropy = torch.zeros((), dtype=exact, device=column.device)
        mutual = torch.zeros_like(cross_entropy)
        rows = _chunk_rows(networks, items, column.device.type)
        room = networks * min(rows, positions) * items
        # reused by every chunk: fresh memory of this size costs more than the arithmetic
        buffers = [torch.empty(room, dtype=exact, device=column.device) for _ in range(3)]
        for lo in range(0, positions, rows):
            at = slice(lo, min(lo + rows, positions))
            shape = (networks, at.stop - lo, items)
            z, log_p, p = (b[: shape[0] * shape[1] * items].view(shape) for b in buffers)
            for n in range(networks):
                _product(states[n][at], matrices[n].mT, out=z[n])
            index = column[at].expand(networks, -1)[..., None]  # [N, c, 1]
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


def _chunk_rows(networks: int, items: int, device: str) -> int:
    logits = _CPU_LOGITS if device == "cpu" else _OTHER_LOGITS
    return max(16, logits // (networks * items))


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


def mutual_kl(logits: Tensor, temperature: float) -> Tensor:
    """``sum over pairs {x, y} of (KL(p_y || p_x) + KL(p_x || p_y)) / 2`` at each position.

    p are the softmax outputs at the temperature. In each KL the first one teaches and is detached.

    Args:
        logits: [N, M, I].
        temperature: tau.

    Returns:
        [M].
    """
    log_p = (logits / temperature).log_softmax(-1)
    teacher = log_p.detach()
    p = teacher.exp()
    others = p.sum(0) - p  # [N, M, I] what a network's teachers say, added up
    entropy = (p * teacher).sum((0, -1)) * (len(logits) - 1)  # [M]
    return 0.5 * (entropy - (others * log_p).sum((0, -1)))


class MutualLoss(nn.Module):
    """Cross-entropy and mutual distillation of all networks, from logits that are made once.

    Args:
        weight: What the distillation counts in the objective.
        temperature: tau.

    Raises:
        ValueError: ``weight`` is below 0 or the temperature isn't above.
    """

    def __init__(self, *, weight: float = 0.001, temperature: float = 1.0) -> None:
        super().__init__()
        check_weights(weight=weight)
        check_temperature(temperature)
        self.weight = weight
        self.temperature = temperature

    def forward(
        self, states: Sequence[Tensor], item_matrices: Sequence[Tensor], target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Means over the global batch's positions.

        Args:
            states: N times [M, D], at supervised positions.
            item_matrices: N times [I, D].
            target: [M] int64 in 1..I.

        Returns:
            ``cross_entropy + weight * mutual / N`` with a graph; and the two without: the mean
            cross-entropy of a network, and the sum over pairs of networks.
        """
        total, cross_entropy, mutual = joint_softmax(
            states, item_matrices, target - 1, temperature=self.temperature, weight=self.weight
        )
        count = torch.tensor(float(len(target)), device=target.device)
        return (
            global_mean(total, count),
            global_mean(cross_entropy, count),
            global_mean(mutual, count),
        )
