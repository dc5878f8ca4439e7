"""Recommender: item sequences [B, L] to states [B, L, d] and scores over the catalogue.

The student of KDSR (arXiv:2401.07257), section 3: fused item embedding, backbone, dot product.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmkd.student.backbones import Backbone
from mmkd.student.item_embedding import FusedItemEmbedding

ScoreWith = Literal["id", "fused"]

# computed again at a time with gradient checkpointing; on a CPU what its caches like (measured)
_CPU_POSITIONS = 2_048
_OTHER_POSITIONS = 65_536


@dataclass(frozen=True)
class StudentOutput:
    """What one student makes of a batch."""

    hidden: Tensor
    """[B, L, d] states; without meaning at padding."""
    modality: dict[str, Tensor]
    """Name to the whole student table S_m [I+2, d] (the parameter)."""
    item_matrix: Tensor
    """[I, d], row r scores item r + 1."""


class Recommender(nn.Module):
    """An item embedding, a backbone, and a dot product with every item.

    With `score_with="fused"` an item is scored by its fused vector, so that one without training
    events is ranked by what its modalities say. The table is fused once a forward, for the inputs
    and for the scores alike. With `"id"` only the batch's own items are fused.

    With `gradient_checkpointing` set, training keeps the backbone's inputs and outputs only and
    computes the rest again for the gradients (arXiv:1604.06174).
    """

    def __init__(
        self,
        *,
        embedding: FusedItemEmbedding,
        backbone: Backbone,
        score_with: ScoreWith = "fused",
    ) -> None:
        """Put the parts together.

        Args:
            embedding: The item tables.
            backbone: An nn.Module of the same width.
            score_with: `fused` or `id`.

        Raises:
            ValueError: `backbone` is no nn.Module, or an unknown `score_with`.
        """
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise ValueError(
                f"backbone: got {type(backbone).__name__}, wanted a torch.nn.Module; "
                "derive it from one, or its weights would not train."
            )
        if score_with not in ("id", "fused"):
            raise ValueError(f"score_with {score_with!r}: unknown; use id or fused.")
        self.embedding = embedding
        self.backbone = backbone
        self.score_with = score_with
        self.causal = bool(backbone.causal)
        self.gradient_checkpointing = False

    def forward(self, items: Tensor) -> StudentOutput:
        """States of every position.

        Args:
            items: [B, L] int64: 0 padding (on the left), 1..I items, I+1 mask token, which the
                caller sets where a bidirectional backbone is to predict.

        Returns:
            The states, the modality tables, and the matrix to score with.

        Raises:
            ValueError: `items` is not [B, L].
        """
        if items.ndim != 2:
            raise ValueError(
                f"items: got shape {tuple(items.shape)}, wanted [B, L]; "
                "add a batch dimension with items[None]."
            )
        if self.score_with == "fused":
            table = self.embedding.table()  # [I+2, d]
            x = self.embedding.lookup(items, table)
            matrix = table[1:-1]
        else:
            x = self.embedding(items)
            matrix = self.item_matrix()
        hidden = self._states(x, items == 0)  # [B, L, d]
        return StudentOutput(
            hidden=hidden, modality=self.embedding.modality_tables(), item_matrix=matrix
        )

    def _states(self, x: Tensor, padding: Tensor) -> Tensor:
        if not (self.gradient_checkpointing and self.training):
            return self.backbone(x, padding)
        # sequences do not see each other, so what is computed again is a few of them at a time
        positions = _CPU_POSITIONS if x.device.type == "cpu" else _OTHER_POSITIONS
        count = math.ceil(x.shape[0] * x.shape[1] / positions)
        rows = max(1, math.ceil(x.shape[0] / max(1, count)))  # alike: kernels are kept by shape
        chunks = zip(torch.split(x, rows), torch.split(padding, rows), strict=True)
        return torch.cat(
            [checkpoint(self.backbone, *chunk, use_reentrant=False) for chunk in chunks]
        )

    def item_matrix(self) -> Tensor:
        """[I, d] the rows to score with, row r for item r + 1."""
        table = self.embedding.table() if self.score_with == "fused" else self.embedding.id_table
        return table[1:-1]

    def score(self, hidden: Tensor, item_matrix: Tensor | None = None) -> Tensor:
        """Scores over the catalogue.

        Args:
            hidden: [..., d].
            item_matrix: [I, d]; pass it when scoring many batches, or it is made anew each time.

        Returns:
            [..., I+1], column r for item r, column 0 (padding) -inf.
        """
        matrix = self.item_matrix() if item_matrix is None else item_matrix
        return F.pad(hidden @ matrix.mT, (1, 0), value=-float("inf"))

    def modality_parameters(self) -> list[nn.Parameter]:
        """The modality tables, for a parameter group with a schedule of its own."""
        return self.embedding.modality_parameters()
