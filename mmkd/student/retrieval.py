"""Retrieval: a trained ensemble as two towers, histories to [B, D] and items to [I, D].

What a vector index and a service without mmkd can use: the inner products of the two are the
ensemble's scores. Standardised scores are such products too: over items of mean m and covariance
C = R R^T, a member's scores of a state h have the mean h m and the deviation |h R|.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.student.backbones import reads_items
from mmkd.student.ensemble import Ensemble, combine
from mmkd.student.recommender import Recommender, settled

_CHUNK_ROWS = 65_536  # whose products are summed at once, in float64
_ALIKE = 1e-6  # as `standardized` has it


class Retrieval(nn.Module):
    """One query vector a history, one vector an item; and the scores of all items.

    The tables are fused once, here, so nothing of the fusion is left in it. Nothing is trained
    through it.

    >>> import torch
    >>> from mmkd import Ensemble, FusedItemEmbedding, Recommender, SASRec
    >>> student = Ensemble([Recommender(
    ...     embedding=FusedItemEmbedding(item_count=3, width=8),
    ...     backbone=SASRec(width=8, max_length=5))])
    >>> from mmkd.student import Retrieval
    >>> towers, history = Retrieval(student), torch.tensor([[0, 2, 1]])
    >>> scores = towers(history) @ towers.vectors.mT
    >>> torch.allclose(scores, student.next_scores(history)[:, 1:], atol=1e-6)
    True

    Args:
        student: Trained networks.

    Attributes:
        vectors: [I, D]: the members' item matrices side by side, each moved and scaled as its
            scores are combined; where untrained items are moved, a last column marks them.
        columns: By member, from which to before which column it has.
        shares: By member what it counts, of a mean of 1.
        dot: Whether scores are inner products of queries and ``vectors``. Softmax probabilities
            that were added are none.
        length: The longest history that is read, in items.
    """

    vectors: Tensor

    def __init__(self, student: Ensemble) -> None:
        super().__init__()
        networks = student.networks
        self.inference = student.inference
        self.causal, self.item_count = student.causal, student.item_count
        self.length: int | None = None
        if student.max_length is not None:
            self.length = student.max_length - (0 if student.causal else 1)
        self.dot = student.inference != "probabilities"
        counts = torch.ones(len(networks)) if student.weights is None else student.weights
        self.shares: list[float] = (counts / counts.mean()).tolist()
        with settled(student), torch.no_grad():
            matrices = [network.item_matrix() for network in networks]
            known = student.known()
            self.towers = nn.ModuleList(
                _Tower(network, matrix, known=seen, standardized=self.inference == "standardized")
                for network, matrix, seen in zip(networks, matrices, known, strict=True)
            )
            widths = [matrix.shape[1] for matrix in matrices]
            starts = [sum(widths[:n]) for n in range(len(widths))]
            self.columns = [(at, at + width) for at, width in zip(starts, widths, strict=True)]
            parts = [
                _centred(matrix, seen) if self.inference == "standardized" else matrix
                for matrix, seen in zip(matrices, known, strict=True)
            ]
            vectors = torch.cat(parts, dim=1)
            offset, untrained, root = student.untrained_offset, student.untrained, None
            if self.dot and untrained is not None:
                root = _root(vectors, None)  # of all scores of the list, whichever item's
                vectors = torch.cat([vectors, untrained[:, None].to(vectors)], dim=1)
        self.offset = 0.0 if offset is None else float(offset)
        self.register_buffer("vectors", vectors.detach().clone())
        self.untrained: Tensor | None
        self.register_buffer("untrained", None if untrained is None else untrained.clone())
        self.root: Tensor | None
        self.register_buffer("root", root)
        self.requires_grad_(False).eval()

    def forward(self, history: Tensor) -> Tensor:
        """Histories [B, L] of rows 1..I, left-padded with 0, to queries [B, D].

        Of more than ``length`` items the latest are read.
        """
        if self.length is not None and history.shape[1] > self.length:
            history = history[:, -self.length :]
        if not self.causal:
            history = F.pad(history, (0, 1), value=self.item_count + 1)  # the mask token
        parts = [tower(history) for tower in self.towers]
        if self.dot:
            parts = [h * share for h, share in zip(parts, self.shares, strict=True)]
        query = torch.cat(parts, dim=1)
        if self.root is not None:
            deviation = (query @ self.root).norm(dim=1, keepdim=True)
            query = torch.cat([query, self.offset * deviation], dim=1)
        return query

    def scores(self, query: Tensor) -> Tensor:
        """Queries [B, D] to the ensemble's scores [B, I]."""
        if self.dot:
            return query @ self.vectors.mT
        spans = [slice(start, stop) for start, stop in self.columns]
        logits = [query[:, span] @ self.vectors[:, span].mT for span in spans]
        total = combine(
            logits, inference=self.inference, weights=torch.tensor(self.shares).to(query)
        )
        if self.untrained is not None:
            deviation = total.std(dim=-1, correction=0, keepdim=True)
            total = total + self.offset * deviation * self.untrained
        return total


class _Tower(nn.Module):
    """One member: a history [B, L] to its state [B, d], in standard deviations where asked."""

    def __init__(
        self, network: Recommender, matrix: Tensor, *, known: Tensor | None, standardized: bool
    ) -> None:
        super().__init__()
        self.backbone = deepcopy(network.backbone)  # whose mode is the student's own affair
        self._reads_items = reads_items(network.backbone)
        # a graph of the last n items is one of that many positions, of whatever
        self._room = max(getattr(network.backbone, "last_n", 1) - 1, 0)
        self.table: Tensor
        self.register_buffer("table", network.embedding.table().detach().clone())
        self.mean: Tensor | None
        self.root: Tensor | None
        own = matrix if known is None else matrix[known]
        mean = own.mean(0) if len(own) else matrix.new_zeros(matrix.shape[1])
        self.register_buffer("mean", mean if standardized else None)
        self.register_buffer("root", _root(matrix, known) if standardized else None)

    def forward(self, items: Tensor) -> Tensor:
        items = F.pad(items, (self._room, 0))
        x = F.embedding(items, self.table)
        inputs = (x, items == 0, items) if self._reads_items else (x, items == 0)
        state: Tensor = self.backbone(*inputs)[:, -1]
        if self.root is None or self.mean is None:
            return state
        deviation = (state @ self.root).norm(dim=1, keepdim=True)
        alike = deviation <= _ALIKE * (state @ self.mean[:, None]).abs()
        return torch.where(alike, 0.0, state / torch.where(alike, 1.0, deviation))


def _centred(matrix: Tensor, known: Tensor | None) -> Tensor:
    """Rows [I, d] less the mean of those that are known; the others zero."""
    if known is None:
        return matrix - matrix.mean(0)
    return torch.where(known[:, None], matrix - matrix[known].mean(0), 0.0)


def _root(matrix: Tensor, known: Tensor | None) -> Tensor:
    """[d, d] R with R R^T the covariance of the rows that are known."""
    rows = matrix if known is None else matrix[known]
    if not len(rows):
        return matrix.new_zeros(matrix.shape[1], matrix.shape[1])
    mean = rows.double().mean(0)
    total = mean.new_zeros(len(mean), len(mean))
    for start in range(0, len(rows), _CHUNK_ROWS):
        centred = rows[start : start + _CHUNK_ROWS].double() - mean
        total += centred.mT @ centred
    values, directions = torch.linalg.eigh(total / len(rows))
    root: Tensor = directions * values.clamp(min=0).sqrt()
    return root.to(matrix.dtype)
