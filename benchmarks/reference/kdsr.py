"""KDSR as the public code computes it, written anew: one step from a `GraphBatch` to its loss.

KDSR (arXiv:2401.07257). Kept from the public code, because they are what its step costs: teacher
matrices over all pairs of items, every ordered pair of the padded length (2,500 a sample at 50),
materialised pair tensors of [B, L, L, d], a loop over samples for the cosines, one relational
graph attention layer, scores for the whole catalogue, one target a sample.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.reference.session_graph import EDGE_TYPES, GraphBatch
from benchmarks.reference.teacher_matrices import (
    code_matrix,
    holistic_matrix,
    random_code_matrix,
)


class ReferenceKDSR(nn.Module):
    """The student with its four correlation losses and the teacher matrices it looks up.

    Args:
        teachers: modality name to vectors [V+1, width], row 0 zero; they also initialise the
            student's tables, so their width is the model's.
        codes: correlation types.
        facets: sub-vectors a correlation is dissected into.
        temperature: divides the difference of the holistic correlations.
        holistic_weight: weight of each holistic loss.
        dissected_weight: weight of each dissected loss.
        dropout: on the fused item vectors.
        attention_dropout: on the graph attention's scores.
        random_codes: draw the code matrix instead of fitting it; the step costs the same.
        dtype: of the holistic matrices; the public code holds float64.
    """

    def __init__(
        self,
        *,
        teachers: Mapping[str, NDArray[np.float32]],
        codes: int = 50,
        facets: int = 8,
        temperature: float = 1.5,
        holistic_weight: float = 4.0,
        dissected_weight: float = 0.5,
        dropout: float = 0.4,
        attention_dropout: float = 0.2,
        random_codes: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        rows, width = next(iter(teachers.values())).shape
        self.temperature = temperature
        self.holistic_weight, self.dissected_weight = holistic_weight, dissected_weight
        self.item_table = nn.Embedding(rows, width, padding_idx=0)
        nn.init.normal_(self.item_table.weight, std=0.02)
        self.graph = RelationalGraphAttention(width=width, dropout=attention_dropout)
        self.gate = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
        self.dropout = nn.Dropout(dropout)
        self.tables, self.projections, self.typers = (nn.ModuleDict() for _ in range(3))
        self.holistic: dict[str, Tensor] = {}
        self.codes: dict[str, Tensor] = {}
        for name, vectors in teachers.items():
            table = nn.Embedding(rows, width, padding_idx=0)
            table.weight.data.copy_(torch.from_numpy(vectors))
            self.tables[name] = table
            self.projections[name] = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
            self.typers[name] = nn.Sequential(
                nn.Linear(width, width), nn.ReLU(), nn.Linear(width, codes)
            )
            self.holistic[name] = holistic_matrix(vectors, dtype=dtype)
            self.codes[name] = (
                random_code_matrix(rows=rows, codes=codes)
                if random_codes
                else code_matrix(vectors, facets=facets, codes=codes)
            )

    def forward(self, batch: GraphBatch) -> Tensor:
        """The total loss of one batch, a scalar."""
        item = self.item_table(batch.nodes)  # [B, L, D]
        modality = {name: table(batch.nodes) for name, table in self.tables.items()}
        sources = [item, self.graph(item, batch.edges), *modality.values()]
        stacked = torch.stack(sources, dim=-2)  # [B, L, S, D]
        weights = self.gate(stacked).softmax(dim=-2)  # [B, L, S, 1]
        fused = self.dropout((stacked * weights).sum(-2)) * batch.node_mask.unsqueeze(-1)

        loss = F.cross_entropy(self._scores(fused, batch), batch.target - 1)
        for name, vectors in modality.items():
            loss = loss + self.holistic_weight * self.holistic_loss(name, vectors, batch)
            loss = loss + self.dissected_weight * self.dissected_loss(name, vectors, batch)
        return loss

    def holistic_loss(self, name: str, vectors: Tensor, batch: GraphBatch) -> Tensor:
        """Per-sample norm of predicted minus teacher cosines over real pairs, batch mean."""
        projected = self.projections[name](vectors)  # [B, L, D]
        predicted = torch.stack(
            [F.cosine_similarity(h.unsqueeze(1), h.unsqueeze(0), dim=-1) for h in projected]
        )  # [B, L, L]
        mask = _pair_mask(batch)
        wanted = self.holistic[name][batch.nodes.unsqueeze(2), batch.nodes.unsqueeze(1)]
        difference = (predicted - mask * wanted) / self.temperature
        norms: Tensor = (mask * (difference.square() + 1e-8).sqrt()).norm(dim=(1, 2))  # [B]
        return norms.mean()

    def dissected_loss(self, name: str, vectors: Tensor, batch: GraphBatch) -> Tensor:
        """Cross-entropy of the predicted correlation types over real pairs."""
        difference = torch.sub(*_both_ends(vectors)).abs()  # [B, L, L, D]
        logits = self.typers[name](difference)  # [B, L, L, K]
        wanted = self.codes[name][batch.nodes.unsqueeze(2), batch.nodes.unsqueeze(1)]
        mask = _pair_mask(batch).bool()
        # the mask is widened to the logits before it selects
        wide = mask.unsqueeze(-1).repeat(1, 1, 1, logits.shape[-1])
        real = logits.masked_select(wide).view(-1, logits.shape[-1])  # [pairs, K]
        return F.cross_entropy(real, wanted.masked_select(mask))

    def _scores(self, fused: Tensor, batch: GraphBatch) -> Tensor:
        """Scores of every item, [B, V]: the sum of the last two events' vectors x item table."""
        width = fused.shape[-1]
        session = torch.zeros_like(fused[:, 0])
        events = fused.gather(1, batch.position.unsqueeze(-1).expand(-1, -1, width))  # [B, L, D]
        for back in (1, 2):
            at = (batch.events - back).clamp(min=0).view(-1, 1, 1).expand(-1, -1, width)
            session = session + events.gather(1, at).squeeze(1)
        scores: Tensor = session @ self.item_table.weight[1:].mT
        return scores


class RelationalGraphAttention(nn.Module):
    """Attention over the session graph; an edge's type chooses the vector that scores it.

    Args:
        width: of the node vectors.
        dropout: on the scores.
        slope: of the leaky ReLU.
    """

    def __init__(self, *, width: int, dropout: float, slope: float = 0.1) -> None:
        super().__init__()
        bound = width**-0.5
        self.slope = slope
        self.project = nn.Parameter(torch.empty(width, width).uniform_(-bound, bound))
        self.score = nn.Parameter(torch.empty(EDGE_TYPES, width, 1).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.empty(EDGE_TYPES).uniform_(-bound, bound))
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        """[B, L, D] node vectors and [B, L, L] edge types to [B, L, D]."""
        hidden = nodes @ self.project
        first, second = _both_ends(hidden)
        product = first * second  # [B, L, L, D]
        scores = product.new_full(edges.shape, -9e15)
        for kind in range(EDGE_TYPES):
            of_kind = F.leaky_relu(product @ self.score[kind], self.slope).squeeze(-1)
            scores = torch.where(edges == kind + 1, of_kind, scores)
        for kind in range(EDGE_TYPES):
            scores = torch.where(edges == kind + 1, scores * self.scale[kind], scores)
        attended: Tensor = self.dropout(scores).softmax(-1) @ hidden
        return attended


def _both_ends(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column vector of every ordered pair, both copied out to [B, L, L, D]."""
    length = vectors.shape[1]
    return (
        vectors.unsqueeze(2).repeat(1, 1, length, 1),
        vectors.unsqueeze(1).repeat(1, length, 1, 1),
    )


def _pair_mask(batch: GraphBatch) -> Tensor:
    real = batch.node_mask.float()
    return real.unsqueeze(2) * real.unsqueeze(1)  # [B, L, L]
