"""Correlation losses: a student's table [I+1, D] and a batch's teacher correlations to two scalars.

KDSR (arXiv:2401.07257), section 3: the *holistic* loss holds similarities of pairs of items to the
teacher's, the *dissected* one has the pair's correlation type predicted.

Both are sums over the pairs of a batch, easily 300k: every [P, D] tensor would be 80 MB of fresh
memory, whose page faults cost several times the arithmetic. Chunks of whole sequences stay in the
processor's cache; each one's gradient is formed right after its value, so that no chunk is kept for
the backward pass.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.distiller import CorrelationDistiller, CorrelationTargets
from mmkd.distiller.correlation import Similarity, holistic_correlation, holistic_matrix
from mmkd.errors import at_least, checked, one_of, positive
from mmkd.losses.distributed import global_mean, weight_problems

PairScale = Literal["frobenius", "rms"]

_CHUNK_PAIRS = 4096
# long sequences: all similarities of a chunk by one matmul, though it computes up to this many
# times the pairs that are wanted, cost less than gathering two vectors a pair (measured)
_MATRIX_EXCESS = 32


class CorrelationLoss(nn.Module):
    """Both correlation losses of one modality, with their heads.

    >>> from mmkd import CorrelationDistiller, CorrelationLoss, Objective, Softmax
    >>> import numpy as np
    >>> class Table:  # as an EmbeddingTable: row 0 is padding
    ...     vectors = np.random.default_rng(0).normal(size=(21, 16)).astype(np.float32)
    ...     present = np.arange(21) > 0
    >>> distiller = CorrelationDistiller(dim=8, facets=4, codes=6).fit({"text": Table()})
    >>> losses = CorrelationLoss.of(distiller, width=32, dissected_weight=0.05)
    >>> objective = Objective(Softmax(), correlation=losses)
    >>> losses["text"].weights
    {'holistic': 4.0, 'dissected': 0.05}

    Args:
        width: D of the student table.
        codes: K, the distiller's.
        similarity: The distiller's.
        holistic_weight: w_h, what the holistic loss counts in the objective; at 0 it has no head
            and is not computed.
        dissected_weight: w_d, the same of the dissected one.
        temperature: tau of the holistic loss.
        pair_scale: ``frobenius`` as published: the holistic loss grows with the length of the
            sequence. ``rms`` divides by the root of the number of pairs, so that one weight fits
            every length.
        hidden: Width of the dissected head's hidden layer; None = ``width``.
        normalize: Give every vector the length sqrt(D) in the dissected loss. It then can neither
            grow nor shrink the vectors, whose scale the recommendation loss needs for itself.

    Attributes:
        weights: Of the losses that are computed, by name.

    Raises:
        ValueError: An option is out of range; a line for each.
    """

    @checked
    def __init__(
        self,
        *,
        width: int,
        codes: int,
        similarity: Similarity = "cosine",
        holistic_weight: float = 4.0,
        dissected_weight: float = 0.5,
        temperature: float = 1.5,
        pair_scale: PairScale = "frobenius",
        hidden: int | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        weights = {"holistic": holistic_weight, "dissected": dissected_weight}
        self.weights = {name: weight for name, weight in weights.items() if weight}
        if holistic_weight:
            self.holistic = HolisticLoss(width, similarity, temperature, pair_scale)
        if dissected_weight:
            self.dissected = DissectedLoss(width, codes, hidden or width, normalize)

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        weights = {name: options.get(name) for name in ("holistic_weight", "dissected_weight")}
        return [
            *at_least(1, width=options.get("width")),
            *at_least(2, "fewer tell no pairs apart", codes=options.get("codes")),
            *one_of(get_args(Similarity), similarity=options.get("similarity")),
            *weight_problems(**weights),
            *positive("such as 1.5", temperature=options.get("temperature")),
            *one_of(get_args(PairScale), pair_scale=options.get("pair_scale")),
            *at_least(1, "null takes the width", hidden=options.get("hidden")),
        ]

    @classmethod
    def of(
        cls,
        distiller: CorrelationDistiller,
        *,
        width: int,
        by_modality: Mapping[str, Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> "dict[str, CorrelationLoss]":
        """A loss for each modality of a fitted distiller, as ``Objective`` takes them.

        Args:
            distiller: Fitted.
            width: D of the student's tables.
            by_modality: Options of some modalities alone, over those of all: such as the holistic
                loss of one teacher and the dissected one of another.
            options: As for the constructor, the same for all.

        Raises:
            ValueError: The distiller is not fitted, or an option is out of range.
        """
        if not distiller.reductions:
            raise ValueError("the distiller has no teacher; call fit first")
        codes, similarity = distiller.codes, distiller.similarity
        own = by_modality or {}
        return {
            name: cls(
                width=width, codes=codes, similarity=similarity, **{**options, **own.get(name, {})}
            )
            for name in distiller.reductions
        }

    def forward(
        self, table: Tensor, items: Tensor, targets: CorrelationTargets
    ) -> dict[str, Tensor]:
        """The losses of a batch, scalars, by name; those of weight 0 are left out.

        Args:
            table: [I+1, D] student vectors of the modality.
            items: [B, L] int64, the batch the targets were made from.
            targets: The distiller's, for this modality.
        """
        positions, pairs = _used_positions(targets, items.shape)
        rows = F.embedding(items.flatten()[positions], table)  # [N, D], gathered for both heads
        return {name: getattr(self, name)(rows, pairs) for name in self.weights}


class HolisticLoss(nn.Module):
    """Frobenius distance between the student's and the teacher's correlations.

    Per sequence ``sqrt(sum over ordered pairs of ((sim(g(S_i), g(S_j)) - rho_ij) / tau)^2)``, mean
    over the sequences with a pair. The targets hold unordered pairs, each counted twice.

    g is two linear layers without an activation, as published, so that S itself must hold the
    correlations up to a linear map. It starts as the identity: a student initialised from the
    teacher starts with a loss near zero. (With the default start the biases outweigh teacher-sized
    inputs, all cosines are near 1, and the first epochs drive S away from the teacher.)
    """

    def __init__(
        self, width: int, similarity: Similarity, temperature: float, pair_scale: PairScale
    ) -> None:
        super().__init__()
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
        total = _sum_over_pairs(self._sum, rows, pairs, list(self.parameters()))
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
    """

    def __init__(self, width: int, codes: int, hidden: int, normalize: bool) -> None:
        super().__init__()
        self.normalize = normalize
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, codes))

    def forward(self, rows: Tensor, pairs: CorrelationTargets) -> Tensor:
        """Scalar loss of student vectors [N, D] and the pairs between them; 0 without a pair."""
        total = _sum_over_pairs(self._sum, rows, pairs, list(self.parameters()))
        return global_mean(total, len(pairs.first))

    def _sum(self, rows: Tensor, pairs: CorrelationTargets) -> Tensor:
        if self.normalize:
            rows = F.normalize(rows, dim=-1, eps=1e-6) * rows.shape[-1] ** 0.5
        s_i, s_j = rows.index_select(0, pairs.first), rows.index_select(0, pairs.second)
        logits = self.head((s_i - s_j).abs()).float()  # [P, K]
        q = pairs.codes
        if q.dim() == 1:
            return F.cross_entropy(logits, q, reduction="sum")
        # log(q) of a clamped q: torch's kl_div takes xlogy, which is five times slower
        divergence: Tensor = q * (q.clamp(min=1e-30).log() - logits.log_softmax(dim=1))
        return divergence.sum()


# ---- sums over pairs; from here on a pair's first and second are rows of [N, D]

_Term = Callable[[Tensor, CorrelationTargets], Tensor]


def _used_positions(
    targets: CorrelationTargets, shape: torch.Size
) -> tuple[Tensor, CorrelationTargets]:
    """The positions of a batch that are in some pair, and the pairs between them.

    Args:
        targets: Of the batch.
        shape: (B, L) of its items.

    Returns:
        Flat indices [N] into the B*L positions, ascending, and the pairs as indices 0..N-1.
    """
    batch, length = shape
    row = targets.sequence * length
    first, second = row + targets.first, row + targets.second
    used = torch.zeros(batch * length, dtype=torch.bool, device=row.device)
    used[first] = True
    used[second] = True
    index = used.cumsum(0) - 1  # [B*L]
    return used.nonzero().squeeze(1), replace(targets, first=index[first], second=index[second])


def _sum_over_pairs(
    term: _Term, rows: Tensor, pairs: CorrelationTargets, parameters: Sequence[Tensor]
) -> Tensor:
    """``term(rows, pairs)``, in chunks on the CPU.

    Args:
        term: A scalar that is a sum over sequences; differentiable in its rows and ``parameters``.
        rows: [N, D].
        pairs: Between the rows.
        parameters: Every tensor that ``term`` reads and that may want a gradient.

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
        ctx: Any, term: _Term, pairs: CorrelationTargets, rows: Tensor, *parameters: Tensor
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


def _chunks(pairs: CorrelationTargets) -> Iterator[tuple[int, int, CorrelationTargets]]:
    """Whole sequences, about _CHUNK_PAIRS pairs at a time, each with its range of rows."""
    counts = torch.bincount(pairs.sequence)
    ends = counts.cumsum(0)
    last = torch.ones_like(ends, dtype=torch.bool)
    last[:-1] = ends[1:] // _CHUNK_PAIRS != ends[:-1] // _CHUNK_PAIRS
    start = 0
    for end in ends[last].tolist():
        if end == start:
            continue
        cut = slice(start, end)
        first, second = pairs.first[cut], pairs.second[cut]
        lo, hi = int(first.min()), int(second.max()) + 1  # a sequence's rows lie together
        chunk = replace(
            pairs,
            sequence=pairs.sequence[cut],
            first=first - lo,
            second=second - lo,
            holistic=pairs.holistic[cut],
            dissected=pairs.dissected[cut],
        )
        yield lo, hi, chunk
        start = end
