"""NeighbourLoss: the closed form of targets that are shared with teacher neighbours."""

import torch
from torch import Tensor, nn

from mmkd.distiller import TeacherNeighbours


class NeighbourLoss(nn.Module):
    """What sharing targets adds to a softmax's cross-entropy, for a share of 1.

    The cross-entropy against ``q = (1 - e) onehot(y) + e s(y, .)`` is linear in q, and the
    partition function does not see it: it is the plain one plus ``e (z_y - sum_j s(y, j) z_j)``,
    which is the expectation over drawn targets.

    >>> import torch
    >>> from mmkd import NeighbourLoss, TeacherNeighbours
    >>> near = TeacherNeighbours(torch.tensor([[0], [2], [1]]), torch.tensor([[0.], [1], [1]]), {})
    >>> matrix, state = torch.tensor([[2.0], [0.5]]), torch.tensor([[1.0]])
    >>> NeighbourLoss(near)(state, matrix, torch.tensor([1])).item()
    1.5

    Args:
        neighbours: Who shares.
    """

    rows: Tensor
    shares: Tensor

    def __init__(self, neighbours: TeacherNeighbours) -> None:
        super().__init__()
        self.register_buffer("rows", neighbours.rows, persistent=False)
        self.register_buffer("shares", neighbours.shares, persistent=False)

    def forward(self, hidden: Tensor, item_matrix: Tensor, target: Tensor) -> Tensor:
        """Sum over positions; shapes as in ``RecommendationLoss``."""
        neighbours = TeacherNeighbours(self.rows, self.shares, {})
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = item_matrix.float()
            away = torch.cat([matrix.new_zeros(1, matrix.shape[1]), matrix])
            away = away - neighbours.mean(matrix)  # [I+1, D]
            return (hidden.float() * away[target]).sum()
