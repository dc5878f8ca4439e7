"""Ensemble compression: a trained ensemble's predictions and states to a loss on one network.

Tempered KL at supervised positions (Hinton et al., arXiv:1503.02531) and, so that widths need not
agree, the cosines between states instead of the states (as KDSR, arXiv:2401.07257, does for items).
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.errors import positive, refuse
from mmkd.losses.distributed import global_mean, weight_problems
from mmkd.losses.recommendation import autocast_together, chunk_rows
from mmkd.student.ensemble import Inference

_STATES = 512  # positions whose states are compared, all pairs of them


class CompressionLoss(nn.Module):
    """How far a network is from an ensemble.

    >>> from mmkd import CompressionLoss
    >>> import torch
    >>> states, matrix = torch.randn(5, 4), torch.randn(10, 4)
    >>> found = CompressionLoss()(states, matrix, [states] * 3, [matrix] * 3, "logits")
    >>> {name: round(abs(float(loss)), 4) for name, loss in found.items()}  # it is the ensemble
    {'compression': 0.0, 'compression.states': 0.0}

    Args:
        weight: What the predictions count in the objective; at 0 they are not compared.
        states_weight: What the states' cosines count, the same.
        temperature: Of both softmaxes; the KL is multiplied by its square, so that its gradient
            stays of one size.

    Attributes:
        weights: Of the losses that are computed, by name.

    Raises:
        ValueError: A weight is below 0 or the temperature isn't above.
    """

    def __init__(
        self, *, weight: float = 1.0, states_weight: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__()
        refuse(self.check(weight=weight, states_weight=states_weight, temperature=temperature))
        weights = {"compression": weight, "compression.states": states_weight}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.temperature = temperature

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        weights = {name: options.get(name) for name in ("weight", "states_weight")}
        temperature = options.get("temperature")
        return [*weight_problems(**weights), *positive("such as 1.0", temperature=temperature)]

    def forward(
        self,
        states: Tensor,
        item_matrix: Tensor,
        teacher_states: Sequence[Tensor],
        teacher_matrices: Sequence[Tensor],
        inference: Inference,
    ) -> dict[str, Tensor]:
        """The losses, scalars, by name; those of weight 0 are left out.

        Means over the global batch's supervised positions, and over the pairs of them.

        Args:
            states: [M, D], the student's.
            item_matrix: [I, D].
            teacher_states: N times [M, D_t], without a graph.
            teacher_matrices: N times [I, D_t].
            inference: How the teacher's members are put together.
        """
        found = {}
        if "compression" in self.weights:
            total = soft_target_kl(
                states,
                item_matrix,
                teacher_states,
                teacher_matrices,
                temperature=self.temperature,
                inference=inference,
            )
            found["compression"] = global_mean(self.temperature**2 * total, len(states))
        if "compression.states" in self.weights:
            stride = -(-len(states) // _STATES)
            distance = state_distance(states[::stride], [h[::stride] for h in teacher_states])
            found["compression.states"] = global_mean(distance.sum(), distance.numel())
        return found


def state_distance(states: Tensor, teacher_states: Sequence[Tensor]) -> Tensor:
    """Squared difference of the cosines of every two positions' states.

    Args:
        states: [M, D].
        teacher_states: N times [M, D_t]; their cosines' mean is what is wanted.

    Returns:
        [M, M]; the diagonal is 0.
    """
    with torch.autocast(states.device.type, enabled=False):
        own = _cosines(states)
        wanted = torch.stack([_cosines(h) for h in teacher_states]).mean(0)
        return (own - wanted).square()


def _cosines(states: Tensor) -> Tensor:
    exact = states if states.dtype == torch.float64 else states.float()
    unit = F.normalize(exact, dim=-1)
    return unit @ unit.mT


def soft_target_kl(
    states: Tensor,
    item_matrix: Tensor,
    teacher_states: Sequence[Tensor],
    teacher_matrices: Sequence[Tensor],
    *,
    temperature: float,
    inference: Inference,
) -> Tensor:
    """``sum over positions of KL(p_teacher || p_student)`` at a temperature, in chunks.

    ``logits``: p_teacher is the softmax of the members' mean logits; ``probabilities``: the mean of
    their softmaxes. Shapes as in ``CompressionLoss``. To first order only.
    """
    tensors = autocast_together(states, item_matrix, *teacher_states, *teacher_matrices)
    found: Tensor = _SoftTargets.apply(temperature, inference == "logits", *tensors)
    return found


class _SoftTargets(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, temperature: float, by_logits: bool, *tensors: Tensor) -> Tensor:
        h, matrix, *teacher = tensors
        members = len(teacher) // 2
        exact = h.dtype if h.dtype == torch.float64 else torch.float32
        h_gradient = torch.zeros_like(h, dtype=exact)
        matrix_gradient = torch.zeros_like(matrix, dtype=exact)
        total = torch.zeros((), dtype=exact, device=h.device)
        rows = chunk_rows(len(matrix) * (members + 1), h.device.type)
        for lo in range(0, len(h), rows):
            at = slice(lo, lo + rows)
            each = [
                (teacher[n][at] @ teacher[members + n].mT).to(exact) / temperature
                for n in range(members)
            ]
            if by_logits:
                wanted = (sum(each[1:], each[0]) / members).log_softmax(-1)  # [c, I]
            else:
                wanted = torch.stack([z.log_softmax(-1) for z in each]).logsumexp(0)
                wanted -= torch.tensor(float(members)).log()
            found = ((h[at] @ matrix.mT).to(exact) / temperature).log_softmax(-1)
            p = wanted.exp()
            total += torch.dot(p.flatten(), (wanted - found).flatten())
            slope = ((found.exp() - p) / temperature).to(h.dtype)  # [c, I]
            h_gradient[at] = slope @ matrix
            matrix_gradient += slope.mT @ h[at]
        ctx.save_for_backward(h_gradient.to(h.dtype), matrix_gradient.to(matrix.dtype))
        ctx.others = 2 * members
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        h_gradient, matrix_gradient = ctx.saved_tensors
        nothing = (None,) * ctx.others
        return (None, None, outer[0] * h_gradient, outer[0] * matrix_gradient, *nothing)
