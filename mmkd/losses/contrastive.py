"""Contrastive losses within and across networks: states of sequences and their views to scalars.

EMKD (arXiv:2304.14668), section 4.2: ICL holds a network's sequence states to those of its own
views, CCL to those of another network's.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.errors import checked, positive
from mmkd.losses.distributed import gather_rows, global_mean, weight_problems


class ContrastiveLoss(nn.Module):
    """ICL and CCL of a batch; with several processes the negatives are those of all of them.

    For an anchor a of network x on sequence b, with the states p of b's views and those of the
    other sequences by network y:

        -logsumexp over views of cos(a_xb, p_yv) / tau
        + logsumexp over b' != b of cos(a_xb, a_yb') / tau

    x = y is ICL, summed over networks; x != y is CCL, summed over ordered pairs of networks. Each
    is a mean over sequences.

    >>> from mmkd import ContrastiveLoss
    >>> import torch
    >>> views = torch.tensor([[[1, 2], [3, 4]]] * 3)  # 2 sequences and 2 views of each
    >>> states = [torch.ones(3, 2, 2, 8)]  # of one network, all alike
    >>> found = ContrastiveLoss(cross_weight=0)(states, views)
    >>> round(float(found["intra"]), 4)  # one other sequence against two views: log 1 - log 2
    -0.6931

    Args:
        intra_weight: What ICL counts in the objective; at 0 it is not computed.
        cross_weight: What CCL counts, the same.
        temperature: tau.

    Attributes:
        weights: Of the losses that are computed, by name.

    Raises:
        ValueError: A weight is below 0 or the temperature isn't above.
    """

    @checked
    def __init__(
        self, *, intra_weight: float = 0.01, cross_weight: float = 0.01, temperature: float = 1.0
    ) -> None:
        super().__init__()
        weights = {"intra": intra_weight, "cross": cross_weight}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        self.temperature = temperature

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        weights = {name: options.get(name) for name in ("intra_weight", "cross_weight")}
        temperature = options.get("temperature")
        return [*weight_problems(**weights), *positive("such as 1.0", temperature=temperature)]

    def forward(self, hidden: Sequence[Tensor], views: Tensor) -> dict[str, Tensor]:
        """The losses, scalars, means over the global batch; those of weight 0 are left out.

        Args:
            hidden: N states [1 + V, B, L, D], the unmasked sequences' first.
            views: [1 + V, B, L] int64, what they are states of.
        """
        with torch.autocast(hidden[0].device.type, enabled=False):
            real = (views > 0)[..., None]  # a state at padding means nothing
            flat = [
                ((h if h.dtype == torch.float64 else h.float()) * real).flatten(2) for h in hidden
            ]  # N x [1 + V, B, L * D]
            unit = F.normalize(torch.stack([states[0] for states in flat]), dim=-1)  # [N, B, F]
            candidates, first = gather_rows(unit, dim=1)  # [N, G, F]
            anchors = range(len(flat))
            totals = {name: unit.new_zeros(()) for name in self.weights}
            for y, states in enumerate(flat):
                wanted = [x for x in anchors if ("intra" if x == y else "cross") in self.weights]
                if not wanted:
                    continue
                # all networks' by a view of the same memory, not by a copy
                chosen = unit if len(wanted) == len(flat) else unit[wanted]
                near = self._positives(chosen, states[1:])
                found = (self._negatives(chosen, candidates[y], first) - near).sum(-1)  # [X]
                if candidates.shape[1] == 1:  # alone in its batch: nothing to tell it from
                    found = near.sum(-1) * 0.0
                for x, value in zip(wanted, found.unbind(), strict=True):
                    name = "intra" if x == y else "cross"
                    totals[name] = totals[name] + value
            batch = views.shape[1]
            return {name: global_mean(total, batch) for name, total in totals.items()}

    def _positives(self, anchors: Tensor, views: Tensor) -> Tensor:
        """Unit anchors [X, B, F] of some networks and one's views [V, B, F] to [X, B]."""
        # a matmul a sequence: [B, X, F] x [B, F, V]
        cosine = torch.bmm(anchors.transpose(0, 1), views.permute(1, 2, 0))  # [B, X, V]
        norm = torch.linalg.vector_norm(views, dim=-1).clamp(min=1e-12)  # [V, B]
        scaled: Tensor = cosine / norm.mT[:, None] / self.temperature
        return scaled.logsumexp(-1).mT

    def _negatives(self, anchors: Tensor, candidates: Tensor, first: int) -> Tensor:
        """Unit anchors [X, B, F] and unit sequences [G, F], from ``first`` on theirs, to [X, B]."""
        batch = anchors.shape[1]
        cosine = anchors.flatten(0, 1) @ candidates.mT  # [X * B, G]
        itself = torch.eye(batch, len(candidates), dtype=torch.bool, device=cosine.device)
        far = (cosine / self.temperature).view(-1, batch, len(candidates))
        return far.masked_fill(itself.roll(first, dims=1), -torch.inf).logsumexp(-1)
