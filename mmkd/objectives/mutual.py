"""Mutual distillation: N networks' logits at supervised positions to how far they disagree.

EMKD (arXiv:2304.14668), section 4.4: every network learns from every other one's softened
predictions; whoever teaches gets no gradient from it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmkd.objectives.joint_softmax import joint_softmax
from mmkd.objectives.reduction import global_mean
from mmkd.objectives.weights import check_temperature, check_weights


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
