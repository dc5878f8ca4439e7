"""The loss of tuning: pairs' vectors to a scalar, in-batch negatives in both directions.

InfoNCE (van den Oord et al., arXiv:1807.03748) over cosines, from either item of a pair to the
other; every other pair's item is a negative unless it is the same content as one of the pair.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkd.losses.distributed import gather_rows


def pair_loss(
    first: Tensor,
    second: Tensor,
    first_content: Tensor,
    second_content: Tensor,
    *,
    temperature: float = 0.05,
) -> Tensor:
    """This process's share of the mean loss over the batch of all processes.

    Args:
        first: [B, D] vectors of the pairs' one items, of any length.
        second: [B, D] vectors of the other.
        first_content: [B] int64; equal where two items have the same content.
        second_content: [B] likewise.
        temperature: Cosines are divided by it.

    Returns:
        Scalar. The sum over processes is the loss, and gradients of a process's vectors are those
        of that sum: each other process's loss, which holds them as negatives, adds its own.
    """
    one, other = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
    total = first.new_zeros((), dtype=torch.float32)
    count = 0
    for anchors, candidates in ((one, other), (other, one)):
        everyone, start = gather_rows(candidates, 0)
        count = len(everyone)
        contents = (first_content, second_content)
        theirs, _ = gather_rows(contents[1] if candidates is other else contents[0], 0)
        logits = anchors @ everyone.T / temperature  # [B, B of all]
        own = torch.arange(start, start + len(anchors), device=logits.device)
        # the same content is no negative, whoever's pair it stands in
        alike = (theirs == first_content[:, None]) | (theirs == second_content[:, None])
        alike.scatter_(1, own[:, None], False)
        total = total + F.cross_entropy(logits.masked_fill(alike, -torch.inf), own, reduction="sum")
    return total / (2 * count)
