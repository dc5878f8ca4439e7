"""Mutual distillation: states [M, D] and item matrices [I, D] of N networks to one loss.

EMKD (arXiv:2304.14668), section 4.4: at each supervised position, every two networks are held to
each other's softened predictions over the catalogue. Its logits are the cross-entropy's, so both
are made together.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmkd.errors import checked, positive
from mmkd.losses.distributed import global_mean, weight_problems
from mmkd.losses.joint_softmax import joint_softmax


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
