"""Sums over item pairs, chunk by chunk: rows [N, D] and a pair list to a scalar.

At 300k pairs every intermediate [P, D] tensor is 80 MB of fresh memory, and its page faults cost
several times the arithmetic. Chunks of whole sequences stay in the processor's cache; each one's
gradient is formed right after its value, so that no chunk is kept for the backward pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.distiller.correlation import (
    SIMILARITIES,
    Similarity,
    holistic_correlation,
    holistic_matrix,
)
from mmkd.distiller.distiller import CorrelationTargets
from mmkd.errors import one_of, refuse
from mmkd.losses.distributed import global_mean

_CHUNK_PAIRS = 4096


def used_positions(
    targets: CorrelationTargets, shape: torch.Size
) -> tuple[Tensor, CorrelationTargets]:
    """The positions of a batch that are in some pair, and the pairs between them.

    Args:
        targets: of the batch.
        shape: (B, L) of its items.

    Returns:
        Flat indices [N] into the B*L positions, ascending, and the same pairs with ``first`` and
        ``second`` as indices 0..N-1.
    """
    batch, length = shape
    row = targets.sequence * length
    first, second = row + targets.first, row + targets.second
    used = torch.zeros(batch * length, dtype=torch.bool, device=row.device)
    used[first] = True
    used[second] = True
    index = used.cumsum(0) - 1  # [B*L]
    pairs = replace(targets, first=index[first], second=index[second])
    return used.nonzero().squeeze(1), pairs


def sum_over_pairs(
    term: Callable[[Tensor, CorrelationTargets], Tensor],
    rows: Tensor,
    pairs: CorrelationTargets,
    parameters: Sequence[Tensor],
) -> Tensor:
    """``term(rows, pairs)``, in chunks on the CPU.

    Args:
        term: a scalar that is a sum over sequences; differentiable in its rows and ``parameters``.
        rows: [N, D].
        pairs: between the rows.
        parameters: every tensor that ``term`` reads and that may want a gradient.

    Returns:
        Scalar. Its gradient is correct to first order; there is no second.
    """
    if rows.device.type != "cpu" or len(pairs.first) <= _CHUNK_PAIRS:
        return term(rows, pairs)
    if torch.is_grad_enabled():
        total: Tensor = _ChunkedSum.apply(term, pairs, rows, *parameters)
        return total
    return torch.stack([term(rows[lo:hi], chunk) for lo, hi, chunk in _chunks(pairs)]).sum()


class _ChunkedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        term: Callable[[Tensor, CorrelationTargets], Tensor],
        pairs: CorrelationTargets,
        rows: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        total = rows.new_zeros((), dtype=torch.float32)
        rows_gradient = torch.zeros_like(rows)
        wanted = [p for p in parameters if p.requires_grad]
        gradients = [torch.zeros_like(p) for p in wanted]
        for lo, hi, chunk in _chunks(pairs):
            with torch.enable_grad():
                leaf = rows[lo:hi].detach().requires_grad_()
                value = term(leaf, chunk)
            leaf_gradient, *rest = torch.autograd.grad(value, [leaf, *wanted])
            rows_gradient[lo:hi] += leaf_gradient
            for gradient, part in zip(gradients, rest, strict=True):
                gradient += part
            total += value.detach()
        filled = iter(gradients)
        ctx.save_for_backward(
            rows_gradient, *(next(filled) if p.requires_grad else None for p in parameters)
        )
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if g is None else g * outer[0].to(g.dtype) for g in ctx.saved_tensors)
        return (None, None, *scaled)


def _chunks(pairs: CorrelationTargets) -> list[tuple[int, int, CorrelationTargets]]:
    """Whole sequences, about _CHUNK_PAIRS pairs at a time, each with its range of rows."""
    counts = torch.bincount(pairs.sequence)
    ends = counts.cumsum(0)
    last = torch.ones_like(ends, dtype=torch.bool)
    last[:-1] = ends[1:] // _CHUNK_PAIRS != ends[:-1] // _CHUNK_PAIRS
    chunks: list[tuple[int, int, CorrelationTargets]] = []
    start = 0
    for end in ends[last].tolist():
        if end == start:
            continue
        cut = slice(start, end)
        first, second = pairs.first[cut], pairs.second[cut]
        lo, hi = int(first.min()), int(second.max()) + 1  # a sequence's rows lie together
        chunk = CorrelationTargets(
            pairs.sequence[cut],
            first - lo,
            second - lo,
            pairs.holistic[cut],
            pairs.dissected[cut],
            pairs.assign,
            pairs.kept,
        )
        chunks.append((lo, hi, chunk))
        start = end
    return chunks


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
        refuse(one_of(SIMILARITIES, similarity=similarity))
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

    def forward(self, rows: Tensor, pairs: CorrelationTargets) -> Tensor:
        """Scalar loss of student vectors [N, D] and the pairs between them; 0 without a pair."""
        total = sum_over_pairs(self._sum, rows, pairs, list(self.parameters()))
        return global_mean(total, torch.count_nonzero(torch.bincount(pairs.sequence)))

    def _sum(self, rows: Tensor, pairs: CorrelationTargets) -> Tensor:
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

    def forward(self, rows: Tensor, pairs: CorrelationTargets) -> Tensor:
        """Scalar loss of student vectors [N, D] and the pairs between them; 0 without a pair."""
        total = sum_over_pairs(self._sum, rows, pairs, list(self.parameters()))
        return global_mean(total, len(pairs.first))

    def _sum(self, rows: Tensor, pairs: CorrelationTargets) -> Tensor:
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
