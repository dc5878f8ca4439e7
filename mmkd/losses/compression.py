"""Ensemble compression: a trained ensemble's predictions and states to a loss on one network.

Tempered KL at supervised positions (Hinton et al., arXiv:1503.02531) and, so that widths need not
agree, the cosines between states instead of the states (as KDSR, arXiv:2401.07257, does for items).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.errors import checked, positive
from mmkd.losses.distributed import global_mean, weight_problems
from mmkd.losses.joint_softmax import autocast_together, chunk_rows
from mmkd.student.ensemble import Inference, standardized

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

    @checked
    def __init__(
        self, *, weight: float = 1.0, states_weight: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__()
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
        *,
        weights: Tensor | None = None,
        known: Sequence[Tensor | None] | None = None,
    ) -> dict[str, Tensor]:
        """The losses, scalars, by name; those of weight 0 are left out.

        Means over the global batch's supervised positions, and over the pairs of them.

        Args:
            states: [M, D], the student's.
            item_matrix: [I, D].
            teacher_states: N times [M, D_t], without a graph.
            teacher_matrices: N times [I, D_t].
            inference: How the teacher's members are put together.
            weights: [N], what each of them counts; None = all alike.
            known: By member [I] bool, the items that it knows; None = all. For ``standardized``.
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
                weights=weights,
                known=known,
            )
            found["compression"] = global_mean(self.temperature**2 * total, len(states))
        if "compression.states" in self.weights:
            stride = -(-len(states) // _STATES)
            some = [h[::stride] for h in teacher_states]
            distance = state_distance(states[::stride], some, weights=weights)
            found["compression.states"] = global_mean(distance.sum(), distance.numel())
        return found


def state_distance(
    states: Tensor, teacher_states: Sequence[Tensor], *, weights: Tensor | None = None
) -> Tensor:
    """Squared difference of the cosines of every two positions' states.

    Args:
        states: [M, D].
        teacher_states: N times [M, D_t]; their cosines' mean is what is wanted.
        weights: [N], what each counts in the mean; None = all alike.

    Returns:
        [M, M]; the diagonal is 0.
    """
    with torch.autocast(states.device.type, enabled=False):
        own = _cosines(states)
        wanted = _mean([_cosines(h) for h in teacher_states], weights)
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
    weights: Tensor | None = None,
    known: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """``sum over positions of KL(p_teacher || p_student)`` at a temperature, in chunks.

    p_teacher is as in ``ensemble_log_softmax``, shapes and the rest as in ``CompressionLoss``. To
    first order only.
    """
    tensors = autocast_together(states, item_matrix, *teacher_states, *teacher_matrices)

    def teach(logits: Sequence[Tensor]) -> Tensor:
        return ensemble_log_softmax(
            logits, temperature=temperature, inference=inference, weights=weights, known=known
        )

    found: Tensor = _SoftTargets.apply(temperature, teach, *tensors)
    return found


def ensemble_log_softmax(
    logits: Sequence[Tensor],
    *,
    temperature: float,
    inference: Inference,
    weights: Tensor | None = None,
    known: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """What an ensemble predicts: the logarithm of a distribution over the candidates [M, C].

    ``logits``: the softmax of the members' mean logits over the temperature. ``probabilities``: the
    mean of their softmaxes at the temperature. ``standardized``: the softmax of the mean of their
    standardised scores, times the mean of their standard deviations, over the temperature: a sum of
    scores in standard deviations says in which order items come, not how sure the members are, and
    so it gets back how far the members' own logits spread; one member by itself teaches its own
    softmax. All means are weighted.

    Args:
        logits: N times [M, C].
        temperature: Above 0.
        inference: How the members are put together.
        weights: As in ``CompressionLoss``.
        known: As there.
    """
    if inference == "probabilities":
        each = torch.stack([(z / temperature).log_softmax(-1) for z in logits])  # [N, M, C]
        shares = torch.ones(len(logits)) if weights is None else weights
        share = (shares / shares.sum()).log().to(each).view(-1, 1, 1)
        return (each + share).logsumexp(0)
    if inference == "logits":
        return (_mean(logits, weights) / temperature).log_softmax(-1)
    masks = known or [None] * len(logits)
    found = [standardized(z, mask) for z, mask in zip(logits, masks, strict=True)]
    scores = _mean([score for score, _ in found], weights)
    spread = _mean([deviation for _, deviation in found], weights)  # [M, 1]
    return (scores * spread / temperature).log_softmax(-1)


def _mean(values: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    if weights is None:
        return sum(values[1:], values[0]) / len(values)
    shares = weights / weights.sum()
    return sum((v * s for v, s in zip(values, shares, strict=True)), torch.zeros_like(values[0]))


class _SoftTargets(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        temperature: float,
        teach: Callable[[Sequence[Tensor]], Tensor],
        *tensors: Tensor,
    ) -> Tensor:
        h, matrix, *teacher = tensors
        members = len(teacher) // 2
        exact = h.dtype if h.dtype == torch.float64 else torch.float32
        h_gradient = torch.zeros_like(h, dtype=exact)
        matrix_gradient = torch.zeros_like(matrix, dtype=exact)
        total = torch.zeros((), dtype=exact, device=h.device)
        rows = chunk_rows(len(matrix) * (members + 1), h.device.type)
        for lo in range(0, len(h), rows):
            at = slice(lo, lo + rows)
            wanted = teach(
                [(teacher[n][at] @ teacher[members + n].mT).to(exact) for n in range(members)]
            )  # [c, I]
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
