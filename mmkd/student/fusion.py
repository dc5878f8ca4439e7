"""Fusion: S sources [N, d] and which of them each item has, to one vector [N, d].

The sources are the id vectors and one set of vectors a modality. KDSR (arXiv:2401.07257),
section 3, is `GateFusion`; the other two are the simpler ways to compare it with. All take the
same arguments.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Fusion = Literal["gate", "concat", "sum"]


class GateFusion(nn.Module):
    """Softmax-weighted sum; a two-layer network, shared by the sources, scores each one.

    Each source has a bias of its own in place of the last layer's (which the softmax would
    cancel), so a source can be preferred as a whole. The network reads directions, normalised
    vectors, so that it does not start blind to tables with a small initial scale.
    """

    def __init__(self, *, width: int, sources: int, hidden: int | None = None) -> None:
        """Build the scoring network.

        Args:
            width: d.
            sources: S.
            hidden: Width of the network's hidden layer; None means a quarter of `width` (at least
                8): one score a source needs no more, and the gate runs over the whole catalogue at
                every step when fused vectors score.
        """
        super().__init__()
        hidden = max(8, width // 4) if hidden is None else hidden
        self.hidden = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(sources))

    def weights(self, sources: Sequence[Tensor], has: Tensor) -> Tensor:
        """Weight of every source.

        Args:
            sources: S tensors [N, d].
            has: [N, S] bool; at least one True a row.

        Returns:
            [N, S], rows sum to 1, exactly 0 where the source is missing.
        """
        scores = [
            self.score(torch.tanh(self.hidden(F.layer_norm(s, s.shape[-1:])))) for s in sources
        ]
        logits = torch.cat(scores, dim=-1) + self.bias  # [N, S]
        return logits.masked_fill(~has, -torch.inf).softmax(dim=-1)

    def forward(self, sources: Sequence[Tensor], has: Tensor) -> Tensor:
        """Weighted sum of the sources, [N, d]; arguments as in `weights`."""
        return _weighted_sum(sources, self.weights(sources, has))


class ConcatFusion(nn.Module):
    """One linear layer on the sources side by side, missing ones as zeros.

    Starts as the mean of the sources, so the teacher's similarities survive the first step.
    """

    def __init__(self, *, width: int, sources: int, hidden: int | None = None) -> None:
        """Build the layer; `hidden` is not used."""
        super().__init__()
        self.linear = nn.Linear(sources * width, width, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(width).repeat(1, sources) / sources)

    def forward(self, sources: Sequence[Tensor], has: Tensor) -> Tensor:
        """Fuse S tensors [N, d], of which each item `has` [N, S] some, to [N, d]."""
        kept = [s * has[:, k : k + 1] for k, s in enumerate(sources)]
        fused: Tensor = self.linear(torch.cat(kept, dim=-1))
        return fused


class SumFusion(nn.Module):
    """The mean of the sources an item has.

    A mean rather than a sum: otherwise an item with more modalities would have the longer vector,
    and score higher for that alone.
    """

    def __init__(self, *, width: int, sources: int, hidden: int | None = None) -> None:
        """There is nothing to learn."""
        super().__init__()

    def weights(self, sources: Sequence[Tensor], has: Tensor) -> Tensor:
        """[N, S], as of `GateFusion`: equal where an item has a source."""
        weights = has.to(sources[0].dtype)
        return weights / weights.sum(dim=-1, keepdim=True)

    def forward(self, sources: Sequence[Tensor], has: Tensor) -> Tensor:
        """Fuse S tensors [N, d], of which each item `has` [N, S] at least one, to [N, d]."""
        return _weighted_sum(sources, self.weights(sources, has))


FUSIONS: dict[str, type[GateFusion] | type[ConcatFusion] | type[SumFusion]] = {
    "gate": GateFusion,
    "concat": ConcatFusion,
    "sum": SumFusion,
}


def _weighted_sum(sources: Sequence[Tensor], weights: Tensor) -> Tensor:
    """S tensors [N, d] and weights [N, S] to [N, d]."""
    fused = sources[0] * weights[:, :1]
    for column, source in enumerate(sources[1:], start=1):
        fused = torch.addcmul(fused, source, weights[:, column : column + 1])
    return fused
