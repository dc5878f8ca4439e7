"""Attribute prediction: states of a sequence to which labels each of its items has.

EMKD (arXiv:2304.14668), section 4.3: a linear head a network, binary cross-entropy at real
positions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.losses.distributed import check_weights, global_mean


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


class AttributeLoss(nn.Module):
    """The attribute loss of every network, with their heads.

    Args:
        width: D.
        count: C, how many labels there are.
        labels: [I+2, A] int64, see ``AttributeVocabulary``.
        members: N.
        weight: What the loss counts in the objective.
        exact_reference: As the public code does it: at the positions that the last view masks,
            whether or not their items have a label, with one column more that is always 0.

    Raises:
        ValueError: ``weight`` is below 0.
    """

    def __init__(
        self,
        *,
        width: int,
        count: int,
        labels: Tensor,
        members: int,
        weight: float = 1.0,
        exact_reference: bool = False,
    ) -> None:
        super().__init__()
        check_weights(weight=weight)
        self.weight = weight
        self.exact_reference = exact_reference
        columns = count + 1 if exact_reference else count
        self.heads = nn.ModuleList(nn.Linear(width, columns) for _ in range(members))
        # label 1 is column 1 of the public code's count + 1
        shifted = torch.where(labels > 0, labels + 1, 0) if exact_reference else labels
        self.register_buffer("labels", shifted, persistent=False)
        self.labels: Tensor

    def forward(self, hidden: Sequence[Tensor], items: Tensor, last_targets: Tensor) -> Tensor:
        """Sum over networks of the mean over the global batch's positions.

        Args:
            hidden: N states [B, L, D] of the unmasked sequences.
            items: [B, L] int64.
            last_targets: [B, L] int64, the last view's; only ``exact_reference`` reads them.

        Returns:
            A scalar.
        """
        labels = self.labels[items.flatten()]  # [B * L, A]
        # an item without any label is one that nothing is known of, not one that has none
        chosen = last_targets.flatten() > 0 if self.exact_reference else labels.any(1)
        at = chosen.nonzero().squeeze(1)  # [M]
        labels = labels[at]
        found = [
            attribute_loss(head(states.flatten(0, 1).index_select(0, at)), labels).sum()
            for head, states in zip(self.heads, hidden, strict=True)
        ]
        return global_mean(torch.stack(found).sum(), len(at))
