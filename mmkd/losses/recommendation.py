"""Recommendation losses: hidden states and an item matrix to one scalar, at supervised positions.

Nothing of shape [B, L, I] is ever formed: states are gathered at the supervised positions first
and the softmax over the catalogue runs in chunks that stay in the processor's cache.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.losses.distributed import global_mean

# logits at a time on a CPU, so that they stay in its cache: 128 rows of 12k items were fastest
CPU_CHUNK_LOGITS = 1_500_000


class SoftmaxLoss(nn.Module):
    """Cross-entropy over the whole catalogue."""

    def forward(self, hidden: Tensor, item_matrix: Tensor, target: Tensor) -> Tensor:
        """Sum the cross-entropy over positions.

        Args:
            hidden: States at supervised positions, [M, D].
            item_matrix: Vectors of items 1..I, [I, D].
            target: Rows to predict, [M] in 1..I.

        Returns:
            The summed loss, a scalar.
        """
        if torch.is_autocast_enabled(hidden.device.type):
            dtype = torch.get_autocast_dtype(hidden.device.type)
            hidden, item_matrix = hidden.to(dtype), item_matrix.to(dtype)
        on_cpu = hidden.device.type == "cpu"
        chunk = max(64, CPU_CHUNK_LOGITS // len(item_matrix)) if on_cpu else None
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
        # mean times M, not sum: the chunked path accumulates in the input's dtype, and a bf16 sum
        # over thousands of positions would lose the small terms
        return len(target) * F.linear_cross_entropy(
            hidden, item_matrix, target - 1, options=options
        )


class SampledSoftmaxLoss(nn.Module):
    """Softmax over the target and sampled negatives, with the log-Q correction.

    Each position's target competes with ``negatives`` items drawn once a batch; a logit is lowered
    by the log of how often its item is expected among them (Bengio and Senecal, 2008; Yi et al.,
    RecSys 2019). This is ranking NCE (Ma and Collins, EMNLP 2018, arXiv:1809.01812): with any
    number of negatives its optimum is the full softmax's. That holds because a draw which happens
    to be a position's own target stays in; masking it, the most popular items would lack it most.

    Args:
        train_counts: How often each item trains, [I + 1]; row 0 is ignored.
        negatives: Items drawn a batch.
        sampling: ``uniform``, or ``popularity`` (proportional to the training count + 1).
    """

    def __init__(
        self,
        *,
        train_counts: Tensor,
        negatives: int = 1024,
        sampling: Literal["uniform", "popularity"] = "popularity",
    ) -> None:
        super().__init__()
        self.negatives = negatives
        self.register_buffer("weights", _sampling_weights(train_counts, sampling), persistent=False)
        self.weights: Tensor

    def forward(self, hidden: Tensor, item_matrix: Tensor, target: Tensor) -> Tensor:
        """Sum the loss over positions; shapes as in ``SoftmaxLoss``."""
        drawn = torch.multinomial(self.weights, self.negatives, replacement=True)  # [n]
        log_q = torch.log(self.weights * self.negatives)  # [I]
        own = target - 1
        positive = (hidden * item_matrix[own]).sum(-1) - log_q[own]  # [M]
        negative = hidden @ item_matrix[drawn].mT - log_q[drawn]  # [M, n]
        logits = torch.cat([positive[:, None], negative], dim=1).float()
        return (torch.logsumexp(logits, dim=1) - logits[:, 0]).sum()


class GBCELoss(nn.Module):
    """Generalised binary cross-entropy (gSASRec, RecSys 2023, arXiv:2308.07192, section 5).

    ``-log(sigmoid(s+)^beta) - sum log(1 - sigmoid(s-))`` with
    ``beta = a (t (1 - 1/a) + 1/a)`` and sampling rate ``a = negatives / (I - 1)``.

    Args:
        train_counts: How often each item trains, [I + 1]; row 0 is ignored.
        negatives: Negatives drawn for each position.
        calibration: t in [0, 1]; 0 is plain BCE, 1 undoes the overconfidence of sampling.
        sampling: ``uniform`` (the paper's) or ``popularity``.
    """

    def __init__(
        self,
        *,
        train_counts: Tensor,
        negatives: int = 256,
        calibration: float = 0.75,
        sampling: Literal["uniform", "popularity"] = "uniform",
    ) -> None:
        super().__init__()
        items = len(train_counts) - 1
        rate = min(1.0, negatives / max(1, items - 1))
        self.negatives = negatives
        self.beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)
        self.register_buffer("weights", _sampling_weights(train_counts, sampling), persistent=False)
        self.weights: Tensor

    def forward(self, hidden: Tensor, item_matrix: Tensor, target: Tensor) -> Tensor:
        """Sum the loss over positions; shapes as in ``SoftmaxLoss``."""
        own = target - 1
        drawn = torch.multinomial(self.weights, len(own) * self.negatives, replacement=True)
        drawn = drawn.view(len(own), self.negatives)
        positive = (hidden * item_matrix[own]).sum(-1).float()  # [M]
        negative = torch.einsum("md,mnd->mn", hidden, item_matrix[drawn]).float()  # [M, n]
        hit = drawn == own[:, None]
        pushed = F.softplus(negative).masked_fill(hit, 0.0).sum()
        return pushed - self.beta * F.logsigmoid(positive).sum()


def _sampling_weights(train_counts: Tensor, sampling: str) -> Tensor:
    counts = train_counts[1:].to(torch.float32)
    weights = torch.ones_like(counts) if sampling == "uniform" else counts + 1
    return weights / weights.sum()


class RecommendationLoss(nn.Module):
    """The recommendation loss of one network on one batch.

    Args:
        loss: A module mapping (hidden [M, D], item_matrix [I, D], target [M]) to a summed loss.
        candidates: [I + 1] bool, the items that compete with a target, all targets among them;
            None for the whole catalogue. ``loss`` sees these alone, numbered anew.
    """

    def __init__(self, loss: nn.Module, candidates: Tensor | None = None) -> None:
        super().__init__()
        self.loss = loss
        rows = None if candidates is None else candidates[1:].nonzero().squeeze(1)
        number = None if candidates is None else candidates.long().cumsum(0)
        self.register_buffer("rows", rows, persistent=False)  # [C] rows of the item matrix
        self.register_buffer("number", number, persistent=False)  # [I+1] an item's new number
        self.rows: Tensor | None
        self.number: Tensor | None

    def forward(self, hidden: Tensor, item_matrix: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over all supervised positions of the global batch.

        Args:
            hidden: States, [N, L, D].
            item_matrix: Vectors of items 1..I, [I, D].
            targets: [N, L] int64; 0 = unsupervised.

        Returns:
            A scalar.
        """
        states, item_matrix, wanted = self.supervised(hidden, item_matrix, targets)
        total = self.loss(states, item_matrix, wanted)
        return global_mean(total, torch.tensor(float(len(wanted)), device=hidden.device))

    def supervised(
        self, hidden: Tensor, item_matrix: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What there is to compare: arguments as for ``forward``.

        Returns:
            States at supervised positions [M, D], the candidates' vectors [C, D], and which of
            them is wanted [M], counted from 1.
        """
        at = targets.flatten().nonzero().squeeze(1)  # [M]
        states = hidden.flatten(0, 1).index_select(0, at)
        wanted = targets.flatten()[at]
        if self.rows is not None and self.number is not None:
            item_matrix, wanted = item_matrix.index_select(0, self.rows), self.number[wanted]
        return states, item_matrix, wanted
