"""Attribute prediction: states [B, L, D] of sequences to which labels each of their items has.

EMKD (arXiv:2304.14668), section 4.3: a linear head a network, binary cross-entropy at real
positions.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.errors import at_least, checked
from mmkd.losses.distributed import global_mean, weight_problems


class AttributeLoss(nn.Module):
    """The attribute loss of every network, with their heads.

    >>> from mmkd import AttributeLoss
    >>> import torch
    >>> labels = torch.tensor([[0, 0], [1, 3], [2, 0], [0, 0]])  # padding, 2 items, mask token
    >>> loss = AttributeLoss(width=8, count=3, labels=labels)
    >>> loss([torch.zeros(1, 2, 8)], torch.tensor([[1, 2]])).shape
    torch.Size([])

    Args:
        width: D.
        count: C, how many labels there are.
        labels: [I+2, A] int64, columns 1..C of the labels an item has, then 0; see
            ``AttributeVocabulary``.
        members: N.
        weight: What the loss counts in the objective.

    Raises:
        ValueError: An option is out of range; a line for each.
    """

    @checked
    def __init__(
        self, *, width: int, count: int, labels: Tensor, members: int = 1, weight: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = weight
        self.heads = nn.ModuleList(nn.Linear(width, count) for _ in range(members))
        self.register_buffer("labels", labels, persistent=False)
        self.labels: Tensor

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        counts = {name: options.get(name) for name in ("width", "count", "members")}
        return [*at_least(1, **counts), *weight_problems(weight=options.get("weight"))]

    def forward(self, hidden: Sequence[Tensor], items: Tensor) -> Tensor:
        """Sum over networks of the mean over the global batch's positions.

        Args:
            hidden: N states [B, L, D] of the unmasked sequences.
            items: [B, L] int64.

        Returns:
            A scalar.
        """
        labels = self.labels[items.flatten()]  # [B * L, A]
        # an item without any label is one that nothing is known of, not one that has none
        at = labels.any(1).nonzero().squeeze(1)  # [M]
        labels = labels[at]
        found = [
            attribute_loss(head(states.flatten(0, 1).index_select(0, at)), labels).sum()
            for head, states in zip(self.heads, hidden, strict=True)
        ]
        return global_mean(torch.stack(found).sum(), len(at))


def attribute_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each item against the multi-hot of its labels, mean over columns.

    ``-[y log s(z) + (1 - y) log(1 - s(z))] = softplus(z) - y z``, so that only the labels that an
    item has are looked up and no multi-hot [M, C] is made.

    Args:
        logits: [M, C].
        labels: [M, A] int64, columns 1..C of the labels an item has, then 0.

    Returns:
        [M].
    """
    logits = logits.float() if logits.dtype != torch.float64 else logits
    own = F.pad(logits, (1, 0)).gather(1, labels).sum(1)  # column 0: none
    return (F.softplus(logits).sum(1) - own) / logits.shape[1]
