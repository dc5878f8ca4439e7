"""Scorer: histories [B, L] to scores over the catalogue [B, I + 1], for evaluation and serving."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmkd.student import Recommender


def scorer(student: Recommender, *, item_count: int, max_length: int) -> Callable[[Tensor], Tensor]:
    """How a student answers "what next?".

    A causal student answers with its last state; a bidirectional one reads the mask token after
    the history and answers with the state there. The item matrix is fused once.

    Args:
        student: In evaluation mode.
        item_count: I; the mask token is I + 1.
        max_length: Longest sequence the student reads, mask token included.

    Returns:
        A function from histories [B, L] (left-padded) to scores [B, I + 1].
    """
    with torch.no_grad():
        matrix = student.item_matrix()

    @torch.no_grad()
    def score(histories: Tensor) -> Tensor:
        if not student.causal:
            mask = histories.new_full((len(histories), 1), item_count + 1)
            histories = torch.cat([histories, mask], dim=1)
        hidden = student(histories[:, -max_length:]).hidden[:, -1]  # [B, D]
        return student.score(hidden, matrix)

    return score
