"""Contrastive losses within and across networks: states of sequences and their views to scalars.

EMKD (arXiv:2304.14668), section 4.2: ICL holds a network's sequence states to those of its own
views, CCL to those of another network's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.losses.distributed import check_temperature, check_weights, gather_rows, global_mean


@dataclass(frozen=True)
class Contrast:
    """Both losses, scalars: sums over networks and over ordered pairs of networks.

    Each is a mean over sequences.
    """

    intra: Tensor
    cross: Tensor


def contrast(
    anchors: Tensor,
    views: Sequence[Tensor],
    *,
    temperature: float,
    exact_reference: bool = False,
    candidates: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """Every network's sequences against every network's views.

    ``-logsumexp_v cos(a_x, p_yv) / tau + logsumexp_{b' != b} cos(a_x, a_yb') / tau``. The diagonal
    x = y is ICL, the rest CCL.

    Args:
        anchors: [N, B, F] states of the sequences.
        views: N tensors [V, B, F], states of their views.
        temperature: tau.
        exact_reference: As the public code does it: a sequence's own similarity is set to 0, not
            left out, so that exp(0) stays among the negatives.
        candidates: [N, G, F] unit vectors to take negatives from; None for the anchors' own.
        first: Which row of the candidates is the first anchor.

    Returns:
        [N, N, B], entry (x, y, b); 0 where a sequence has no negative.
    """
    networks, batch = anchors.shape[:2]
    unit = F.normalize(anchors, dim=-1)
    candidates = unit if candidates is None else candidates
    near = []
    for other in views:
        # a matmul a sequence: [B, N, F] x [B, F, V]
        cosine = torch.bmm(unit.transpose(0, 1), other.permute(1, 2, 0))  # [B, N, V]
        norm = torch.linalg.vector_norm(other, dim=-1).clamp(min=1e-12)  # [V, B]
        near.append((cosine / norm.mT[:, None] / temperature).logsumexp(-1).mT)  # [N, B]
    far = unit.flatten(0, 1) @ candidates.flatten(0, 1).mT / temperature  # [N * B, N * G]
    far = far.view(networks, batch, networks, -1).transpose(1, 2)  # [N, N, B, G]
    itself = torch.eye(batch, far.shape[-1], dtype=torch.bool, device=far.device)
    itself = itself.roll(first, dims=1)
    if exact_reference:
        far = far.masked_fill(itself, 0.0)
    elif far.shape[-1] == 1:  # alone in its batch: nothing to tell it from
        return torch.stack(near, dim=1) * 0.0
    else:
        far = far.masked_fill(itself, -torch.inf)
    return far.logsumexp(-1) - torch.stack(near, dim=1)  # [N, N, B]


class ContrastiveLoss(nn.Module):
    """ICL and CCL of a batch; with several processes the negatives are those of all of them.

    Args:
        intra_weight: What ICL counts in the objective.
        cross_weight: What CCL counts.
        temperature: tau.
        exact_reference: See ``contrast``; states at padding count too.

    Raises:
        ValueError: A weight is below 0 or the temperature isn't above.
    """

    def __init__(
        self,
        *,
        intra_weight: float = 0.01,
        cross_weight: float = 0.01,
        temperature: float = 1.0,
        exact_reference: bool = False,
    ) -> None:
        super().__init__()
        check_weights(intra_weight=intra_weight, cross_weight=cross_weight)
        check_temperature(temperature)
        self.intra_weight = intra_weight
        self.cross_weight = cross_weight
        self.temperature = temperature
        self.exact_reference = exact_reference

    def forward(self, hidden: Sequence[Tensor], views: Tensor) -> Contrast:
        """Both losses.

        Args:
            hidden: N states [1 + V, B, L, D], the unmasked sequences' first.
            views: [1 + V, B, L] int64, what they are states of.

        Returns:
            The losses, means over the global batch.
        """
        with torch.autocast(hidden[0].device.type, enabled=False):
            flat = [
                states.float() if states.dtype != torch.float64 else states for states in hidden
            ]
            if not self.exact_reference:  # a state at padding means nothing
                flat = [states * (views > 0)[..., None] for states in flat]
            flat = [states.flatten(2) for states in flat]  # N x [1 + V, B, L * D]
            anchors = torch.stack([states[0] for states in flat])  # [N, B, F]
            candidates, first = gather_rows(F.normalize(anchors, dim=-1), dim=1)
            found = contrast(
                anchors,
                [states[1:] for states in flat],
                temperature=self.temperature,
                exact_reference=self.exact_reference,
                candidates=candidates,
                first=first,
            ).sum(-1)  # [N, N]
            batch = views.shape[1]
            intra = found.diagonal().sum()
            return Contrast(
                intra=global_mean(intra, batch), cross=global_mean(found.sum() - intra, batch)
            )
