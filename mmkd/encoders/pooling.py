"""Pooling: from the states of a text's tokens to one vector.

From: ``[n, l, d]`` states and the ``[n, l]`` attention mask. To: ``[n, d]`` float32. The mask alone
says which tokens count, so padding may be on either side. ``weighted_mean`` is SGPT's (Muennighoff,
arXiv:2202.08904): later tokens of a causal model have seen more, so token i of a text weighs i.
"""

import torch

POOLINGS = ("mean", "weighted_mean", "last", "eos", "cls", "max")


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector per text.

    Args:
        states: ``[n, l, d]``, any floating type; what stands on padding is never read.
        mask: ``[n, l]``, 1 on a text's own tokens; each text has at least one.
        pooling: A name in `POOLINGS`: ``mean``; ``weighted_mean``, by position; ``last`` token;
            ``eos``, the last token too, once the caller has put the end-of-sequence token there;
            ``cls``, the first token; ``max`` of each feature.

    Returns:
        ``[n, d]`` float32, summed in float32.

    Raises:
        ValueError: ``pooling`` is unknown.
    """
    real = mask.bool()
    if pooling in ("mean", "weighted_mean"):
        weights = real.float()  # [n, l]
        if pooling == "weighted_mean":
            weights = real.cumsum(dim=1) * weights
        # a zero weight would not hide the NaN that attention may leave on a padded token
        own = states.float().masked_fill(~real[..., None], 0)
        sums = (own * weights[..., None]).sum(dim=1)  # [n, d]
        return sums / weights.sum(dim=1, keepdim=True)
    if pooling == "max":
        return states.float().masked_fill(~real[..., None], float("-inf")).amax(dim=1)
    if pooling in ("last", "eos"):
        place = real.shape[1] - 1 - real.flip(1).int().argmax(dim=1)  # [n]
    elif pooling == "cls":
        place = real.int().argmax(dim=1)
    else:
        raise ValueError(f"pooling {pooling!r} is unknown; use one of {', '.join(POOLINGS)}")
    return states[torch.arange(len(states), device=states.device), place].float()
