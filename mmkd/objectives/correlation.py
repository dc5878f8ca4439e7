"""Correlation losses of one modality: a student table [I+1, D] and pair targets to two scalars.

Source: KDSR (arXiv:2401.07257), section 3. The heads see real pairs only, each unordered pair
once; ``g`` runs once per position that is in a pair.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.distiller.correlation import (
    Similarity,
    check_similarity,
    holistic_correlation,
    holistic_matrix,
)
from mmkd.distiller.pairs import CorrelationTargets
from mmkd.objectives.pair_chunks import PairList, sum_over_pairs, used_positions
from mmkd.objectives.reduction import global_mean

# long sequences: all similarities of a chunk by one matmul, though it computes up to this many
# times the pairs that are wanted, cost less than gathering two vectors a pair (measured)
_MATRIX_EXCESS = 32

PairScale = Literal["frobenius", "rms"]


@dataclass(frozen=True)
class CorrelationParts:
    """Unweighted losses of one modality, scalars."""

    holistic: Tensor
    dissected: Tensor


class CorrelationLoss(nn.Module):
    """Both correlation losses of one modality, with their heads.

    Args:
        width: D of the student table.
        codes: K, the distiller's.
        similarity: the distiller's.
        temperature: tau of the holistic loss.
        pair_scale: see :class:`HolisticLoss`.
        hidden: width of the dissected head's hidden layer; None = ``width``.
        normalise: see :class:`DissectedLoss`.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        *,
        width: int,
        codes: int,
        similarity: Similarity = "cosine",
        temperature: float = 1.5,
        pair_scale: PairScale = "frobenius",
        hidden: int | None = None,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.holistic = HolisticLoss(
            width=width, similarity=similarity, temperature=temperature, pair_scale=pair_scale
        )
        self.dissected = DissectedLoss(width=width, codes=codes, hidden=hidden, normalise=normalise)

    def forward(
        self, table: Tensor, items: Tensor, targets: CorrelationTargets
    ) -> CorrelationParts:
        """Both losses of a batch.

        Args:
            table: [I+1, D] student vectors of the modality.
            items: [B, L] int64, the batch the targets were made from.
            targets: the distiller's, for this modality.
        """
        positions, pairs = used_positions(targets, items.shape)
        rows = F.embedding(items.flatten()[positions], table)  # [N, D], gathered for both heads
        return CorrelationParts(
            holistic=self.holistic(rows, pairs), dissected=self.dissected(rows, pairs)
        )


class HolisticLoss(nn.Module):
    """Frobenius distance between the student's and the teacher's correlations.

    Per sequence ``sqrt(sum over ordered pairs of ((sim(g(S_i), g(S_j)) - rho_ij) / tau)^2)``, mean
    over the sequences with a pair. The list holds unordered pairs, each counted twice.

    g is two linear layers without an activation, as published, so that S itself must hold the
    correlations up to a linear map. It starts as the identity: a student initialised from the
    teacher starts with a loss near zero. (With the default start the biases outweigh teacher-sized
    inputs, all cosines are near 1, and the first epochs drive S away from the teacher.)

    Args:
        width: D.
        similarity: the distiller's.
        temperature: tau.
        pair_scale: ``frobenius`` as published: the loss grows with the length of the sequence.
            ``rms`` divides by the root of the number of pairs, so one weight fits every length.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        *,
        width: int,
        similarity: Similarity = "cosine",
        temperature: float = 1.5,
        pair_scale: PairScale = "frobenius",
    ) -> None:
        super().__init__()
        check_similarity(similarity)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        if pair_scale not in get_args(PairScale):
            raise ValueError(f"pair_scale {pair_scale!r} is unknown; use frobenius or rms")
        self.similarity: Similarity = similarity
        self.temperature = temperature
        self.pair_scale = pair_scale
        layers = [nn.Linear(width, width), nn.Linear(width, width)]
        for layer in layers:
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.head = nn.Sequential(*layers)

    def forward(self, rows: Tensor, pairs: PairList) -> Tensor:
        """Scalar loss of student vectors [N, D] and the pairs between them; 0 without a pair."""
        total = sum_over_pairs(self._sum, rows, pairs, list(self.parameters()))
        return global_mean(total, torch.count_nonzero(torch.bincount(pairs.sequence)))

    def _sum(self, rows: Tensor, pairs: PairList) -> Tensor:
        h = self.head(rows)  # [N, D]
        if len(h) ** 2 <= _MATRIX_EXCESS * len(pairs.first):
            index = pairs.first * len(h) + pairs.second
            matrix = holistic_matrix(h, self.similarity)  # [N, N]
            predicted = matrix.flatten().index_select(0, index).float()  # [P]
        else:
            h_i, h_j = h.index_select(0, pairs.first), h.index_select(0, pairs.second)
            predicted = holistic_correlation(h_i, h_j, self.similarity).float()  # [P]
        error = (predicted - pairs.holistic) / self.temperature
        _, row, counts = torch.unique_consecutive(
            pairs.sequence, return_inverse=True, return_counts=True
        )
        total = error.new_zeros(len(counts)).index_add(0, row, error.square())  # per sequence
        squared = total / counts if self.pair_scale == "rms" else total * (2 / pairs.kept)
        # the root's slope at 0 is infinite: where a sequence already agrees, stop at 0
        norm = torch.where(squared > 0, squared.clamp(min=1e-30).sqrt(), 0.0)
        return norm.sum()


class DissectedLoss(nn.Module):
    """Predict the correlation type of a pair from ``|S_i - S_j|``.

    An MLP (linear, ReLU, linear to K). Hard codes: cross-entropy. Soft codes:
    KL(code || predicted). Mean over pairs.

    Args:
        width: D.
        codes: K.
        hidden: width of the hidden layer; None = ``width``.
        normalise: give every S_i length sqrt(D) first. The loss then can neither grow nor shrink
            the vectors, whose scale the recommendation loss needs for itself.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self, *, width: int, codes: int, hidden: int | None = None, normalise: bool = False
    ) -> None:
        super().__init__()
        if codes < 2:
            raise ValueError(f"codes must be at least 2 to tell pairs apart, got {codes}")
        self.normalise = normalise
        hidden = width if hidden is None else hidden
        if hidden < 1:
            raise ValueError(f"hidden must be at least 1, got {hidden}; null takes the width")
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, codes))

    def forward(self, rows: Tensor, pairs: PairList) -> Tensor:
        """Scalar loss of student vectors [N, D] and the pairs between them; 0 without a pair."""
        total = sum_over_pairs(self._sum, rows, pairs, list(self.parameters()))
        return global_mean(total, len(pairs.first))

    def _sum(self, rows: Tensor, pairs: PairList) -> Tensor:
        if self.normalise:
            rows = F.normalize(rows, dim=-1, eps=1e-6) * rows.shape[-1] ** 0.5
        s_i, s_j = rows.index_select(0, pairs.first), rows.index_select(0, pairs.second)
        logits = self.head((s_i - s_j).abs()).float()  # [P, K]
        q = pairs.codes
        if q.dim() == 1:
            return F.cross_entropy(logits, q, reduction="sum")
        # log(q) of a clamped q: torch's kl_div takes xlogy, which is five times slower
        divergence: Tensor = q * (q.clamp(min=1e-30).log() - logits.log_softmax(dim=1))
        return divergence.sum()
