"""Scorer: histories [B, L] to scores over the catalogue [B, I + 1], for evaluation and serving."""

from collections.abc import Callable

import torch
from torch import Tensor

from mmkd.student import Ensemble


def scorer(student: Ensemble, *, item_count: int, max_length: int) -> Callable[[Tensor], Tensor]:
    """How a student answers "what next?".

    Its members' scores are added up. A causal student answers with its last states; a
    bidirectional one reads the mask token after the history and answers with the states there.
    The item matrices are fused once.

    Args:
        student: In evaluation mode.
        item_count: I; the mask token is I + 1.
        max_length: Longest sequence the student reads, mask token included.

    Returns:
        A function from histories [B, L] (left-padded) to scores [B, I + 1].
    """
    with torch.no_grad():
        matrices = student.item_matrices()

    @torch.no_grad()
    def score(histories: Tensor) -> Tensor:
        if not student.causal:
            mask = histories.new_full((len(histories), 1), item_count + 1)
            histories = torch.cat([histories, mask], dim=1)
        outputs = student(histories[:, -max_length:])
        return student.score([out.hidden[:, -1] for out in outputs], matrices)  # N x [B, D]

    return score
