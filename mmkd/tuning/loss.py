"""The loss of tuning: pairs' vectors to a scalar, in-batch negatives in both directions.

InfoNCE (van den Oord et al., arXiv:1807.03748) over cosines, from either item of a pair to the
other; every other pair's item is a negative unless it is the same content as one of the pair.
Towers that learn together (Radford et al., arXiv:2103.00020) have it within and across them.
"""

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from mmkd.losses.distributed import gather_rows


def towers_loss(
    vectors: Sequence[Tensor],
    places: Sequence[Tensor],
    contents: Sequence[Tensor],
    *,
    temperature: float = 0.05,
) -> Tensor:
    """This process's share of the mean of `pair_loss` within each tower and across any two.

    With texts and pictures: text to text, picture to picture, and the text of either item to the
    picture of the other. Each counts alike, and is over the pairs that have both contents.

    Args:
        vectors: A tower each, [n, D] of distinct items.
        places: A tower each, [B, 2] int64, the pairs' items among them; any number where an item
            has no such content.
        contents: A tower each, [B, 2] int64; equal where two items have the same content, 0 where
            an item has none.
        temperature: Cosines are divided by it.

    Returns:
        Scalar, to be summed over processes as `pair_loss`.
    """
    everyone = gather_rows(torch.stack(list(contents), dim=2), 0)[0] > 0  # [B of all, 2, towers]
    terms = []
    for one, other in product(range(len(vectors)), repeat=2):
        if not bool((everyone[:, 0, one] & everyone[:, 1, other]).any()):
            continue
        both = (contents[one][:, 0] > 0) & (contents[other][:, 1] > 0)
        terms.append(
            pair_loss(
                vectors[one][places[one][both, 0]],
                vectors[other][places[other][both, 1]],
                contents[one][both, 0],
                contents[other][both, 1],
                crossed=(contents[other][both, 0], contents[one][both, 1]),
                temperature=temperature,
            )
        )
    return torch.stack(terms).mean()


def pair_loss(
    first: Tensor,
    second: Tensor,
    first_content: Tensor,
    second_content: Tensor,
    *,
    crossed: tuple[Tensor, Tensor] | None = None,
    temperature: float = 0.05,
) -> Tensor:
    """This process's share of the mean loss over the batch of all processes.

    Args:
        first: [B, D] vectors of the pairs' one items, of any length.
        second: [B, D] vectors of the other.
        first_content: [B] int64; equal where two items have the same content.
        second_content: [B] likewise.
        crossed: Where the two are of different towers: [B] the contents of the one items as the
            other tower reads them, and of the other items as the one does; 0 where there is none.
        temperature: Cosines are divided by it.

    Returns:
        Scalar. The sum over processes is the loss, and gradients of a process's vectors are those
        of that sum: each other process's loss, which holds them as negatives, adds its own.
    """
    one, other = F.normalize(first.float(), dim=-1), F.normalize(second.float(), dim=-1)
    of_first, of_second = crossed or (first_content, second_content)
    total = first.new_zeros((), dtype=torch.float32)
    count = 0
    for anchors, candidates, content, partner in (
        (one, other, second_content, of_first),
        (other, one, first_content, of_second),
    ):
        everyone, start = gather_rows(candidates, 0)
        count = len(everyone)
        theirs, _ = gather_rows(content, 0)
        logits = anchors @ everyone.T / temperature  # [B, B of all]
        own = torch.arange(start, start + len(anchors), device=logits.device)
        # the same content is no negative, whoever's pair it stands in
        alike = (theirs == content[:, None]) | (theirs == partner[:, None])
        alike.scatter_(1, own[:, None], False)
        total = total + F.cross_entropy(logits.masked_fill(alike, -torch.inf), own, reduction="sum")
    return total / (2 * count)
