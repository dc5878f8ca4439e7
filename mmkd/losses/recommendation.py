"""Recommendation losses: states [M, D] at supervised positions and an item matrix to one sum.

Nothing of shape [B, L, I] is ever formed: the objective gathers the supervised positions first, and
the softmax over the catalogue runs in chunks that stay in the processor's cache.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmkd.distiller import TeacherNeighbours
from mmkd.errors import at_least, checked, within
from mmkd.losses.joint_softmax import joint_softmax
from mmkd.losses.negatives import Candidates, Counts, NegativeSampler, Sampling
from mmkd.student.rows import places


class RecommendationLoss(Protocol):
    """What ``Objective`` takes as its recommendation: any module that is called like this.

    The objective picks the supervised positions and divides the sum by how many there are. A loss
    of your own:

    >>> import torch
    >>> from mmkd import Objective
    >>> class Hinge(torch.nn.Module):
    ...     def forward(self, hidden, item_matrix, target):
    ...         scores = hidden @ item_matrix.mT  # [M, I]
    ...         return torch.nn.functional.multi_margin_loss(scores, target - 1, reduction="sum")
    >>> objective = Objective(Hinge())
    """

    def __call__(self, hidden: Tensor, item_matrix: Tensor, target: Tensor) -> Tensor:
        """Sum the loss over positions.

        Args:
            hidden: States at supervised positions, [M, D].
            item_matrix: Vectors of items 1..I, [I, D].
            target: Items to predict, [M] int64 in 1..I.

        Returns:
            The summed loss, a scalar.
        """


@runtime_checkable
class SampledLoss(Protocol):
    """A recommendation loss that reads the targets and the negatives it draws, and no other item.

    So it can be given the vectors of just these, and a step costs what it touches
    (``training.tables: rows``).
    """

    def draw(self, targets: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Negatives of a batch.

        Args:
            targets: Of any shape, 0 where nothing is asked; M are not.
            generator: A CPU generator; None draws from torch's own.

        Returns:
            [n] int64 in 1..I for all positions, or [M, n], some for each.
        """

    def __call__(
        self,
        hidden: Tensor,
        item_matrix: Tensor,
        target: Tensor,
        negatives: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """As a ``RecommendationLoss``.

        Args:
            hidden: States at supervised positions, [M, D].
            item_matrix: Vectors of items 1..I, [I, D]; or those of ``rows``, without its first and
                last.
            target: Items to predict, [M] int64 in 1..I.
            negatives: Of ``draw``; None draws them here.
            rows: See ``StudentOutput``; None where ``item_matrix`` has all items.
        """


class Softmax(nn.Module):
    """Cross-entropy over the candidates.

    >>> from mmkd import Softmax
    >>> import torch
    >>> loss = Softmax()(torch.zeros(3, 4), torch.randn(10, 4), torch.tensor([1, 5, 10]))
    >>> round(float(loss / 3), 4)  # log 10: a state of zeros tells nothing
    2.3026

    Args:
        candidates: Which items compete with a target: ``all``, or only the ``trained``, which
            occur in training. An item that never occurs is otherwise always the wrong answer, and
            learns to score low whatever its text and picture say.
        train_counts: How often each item trains, [I + 1]; row 0 is ignored. For ``trained``.

    Raises:
        ValueError: ``trained`` without counts.
    """

    @checked
    def __init__(
        self, *, candidates: Candidates = "all", train_counts: Counts | None = None
    ) -> None:
        super().__init__()
        self.candidates = _Candidates(candidates, train_counts)

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        return _problems(options)

    def among(self, item_matrix: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The candidates' vectors [C, D], and which of them is wanted [M], counted from 1."""
        return self.candidates(item_matrix, target)  # type: ignore[no-any-return]

    def forward(self, hidden: Tensor, item_matrix: Tensor, target: Tensor) -> Tensor:
        """Sum the cross-entropy over positions; shapes as in ``RecommendationLoss``."""
        item_matrix, target = self.among(item_matrix, target)
        total, _, _ = joint_softmax([hidden], [item_matrix], target - 1)
        return total


class SampledSoftmax(nn.Module):
    """Softmax over the target and sampled negatives, with the log-Q correction.

    Each position's target competes with ``negatives`` items drawn once a batch; a logit is lowered
    by the log of how often its item is expected among them (Bengio and Senecal, 2008; Yi et al.,
    RecSys 2019). This is ranking NCE (Ma and Collins, EMNLP 2018, arXiv:1809.01812): with any
    number of negatives its optimum is the full softmax's. That holds because a draw which happens
    to be a position's own target stays in; masking it, the most popular items would lack it most.

    >>> from mmkd import SampledSoftmax
    >>> import torch
    >>> loss = SampledSoftmax(train_counts=torch.ones(11), negatives=4)
    >>> total = loss(torch.zeros(3, 4), torch.randn(10, 4), torch.tensor([1, 5, 10]))
    >>> round(float(total / 3), 4)  # log 5: the target and four others, all alike
    1.6094

    Args:
        train_counts: How often each item trains, [I + 1]; row 0 is ignored.
        negatives: Items drawn a batch.
        sampling: ``uniform``, or ``popularity`` (proportional to the training count + 1).
        candidates: See ``Softmax``; the draws are candidates too.

    Raises:
        ValueError: An option is out of range.
    """

    @checked
    def __init__(
        self,
        *,
        train_counts: Counts,
        negatives: int = 1024,
        sampling: Sampling = "popularity",
        candidates: Candidates = "all",
    ) -> None:
        super().__init__()
        self.negatives = negatives
        self.sampler = NegativeSampler(
            train_counts=train_counts, sampling=sampling, candidates=candidates
        )

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        return _problems(options)

    def draw(self, targets: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """[n] negatives of all positions, see ``SampledLoss``."""
        return self.sampler.draw(self.negatives, generator=generator).to(targets.device)

    def forward(
        self,
        hidden: Tensor,
        item_matrix: Tensor,
        target: Tensor,
        negatives: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Sum the loss over positions; arguments as of ``SampledLoss``."""
        drawn = self.draw(target) if negatives is None else negatives  # [n]
        expected = math.log(self.negatives)
        own = item_matrix[places(target, rows) - 1]  # [M, D]
        positive = (hidden * own).sum(-1) - (self.sampler.log_q(target) + expected)  # [M]
        others = item_matrix[places(drawn, rows) - 1]  # [n, D]
        lowered = -(self.sampler.log_q(drawn) + expected).to(others.dtype)  # [n]
        if torch.is_autocast_enabled(hidden.device.type):  # which would round the correction too
            negative = (hidden @ others.mT).float() + lowered
        else:
            negative = F.linear(hidden, others, lowered)  # [M, n]
        # the cross-entropy of the target beside them, without a copy of [M, 1 + n] to join both
        return F.softplus(negative.float().logsumexp(dim=1) - positive.float()).sum()


class GBCE(nn.Module):
    """Generalised binary cross-entropy (gSASRec, RecSys 2023, arXiv:2308.07192, section 5).

    ``-log(sigmoid(s+)^beta) - sum log(1 - sigmoid(s-))`` with
    ``beta = a (t (1 - 1/a) + 1/a)`` and sampling rate ``a = negatives / (C - 1)``.

    >>> from mmkd import GBCE
    >>> import torch
    >>> loss = GBCE(train_counts=torch.ones(11), negatives=3, calibration=1.0)
    >>> round(loss.beta, 4)  # full calibration weighs the target by the sampling rate
    0.3333

    Args:
        train_counts: How often each item trains, [I + 1]; row 0 is ignored.
        negatives: Negatives drawn for each position.
        sampling: ``uniform`` (the paper's) or ``popularity``.
        calibration: t in [0, 1]; 0 is plain BCE, 1 undoes the overconfidence of sampling.
        candidates: See ``Softmax``; the draws are candidates too.

    Raises:
        ValueError: An option is out of range.
    """

    @checked
    def __init__(
        self,
        *,
        train_counts: Counts,
        negatives: int = 256,
        sampling: Sampling = "uniform",
        calibration: float = 0.75,
        candidates: Candidates = "all",
    ) -> None:
        super().__init__()
        self.negatives = negatives
        self.sampler = NegativeSampler(
            train_counts=train_counts, sampling=sampling, candidates=candidates
        )
        rate = min(1.0, negatives / max(1, self.sampler.candidate_count - 1))
        self.beta = rate * (calibration * (1 - 1 / rate) + 1 / rate)

    @staticmethod
    def check(**options: Any) -> list[str]:
        """A line for each of these options that is out of range."""
        return _problems(options)

    def draw(self, targets: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """[M, n] negatives, some for each position, see ``SampledLoss``."""
        positions = int(torch.count_nonzero(targets))
        drawn = self.sampler.draw(positions * self.negatives, generator=generator)
        return drawn.to(targets.device).view(positions, self.negatives)

    def forward(
        self,
        hidden: Tensor,
        item_matrix: Tensor,
        target: Tensor,
        negatives: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Sum the loss over positions; arguments as of ``SampledLoss``."""
        drawn = self.draw(target) if negatives is None else negatives  # [M, n]
        own = item_matrix[places(target, rows) - 1]  # [M, D]
        positive = (hidden * own).sum(-1).float()  # [M]
        others = item_matrix[places(drawn, rows) - 1]  # [M, n, D]
        negative = torch.einsum("md,mnd->mn", hidden, others).float()  # [M, n]
        hit = drawn == target[:, None]
        pushed = F.softplus(negative).masked_fill(hit, 0.0).sum()
        return pushed - self.beta * F.logsigmoid(positive).sum()


class NeighbourLoss(nn.Module):
    """What sharing targets adds to a softmax's cross-entropy, for a share of 1.

    The cross-entropy against ``q = (1 - e) onehot(y) + e s(y, .)`` is linear in q, and the
    partition function does not see it: it is the plain one plus ``e (z_y - sum_j s(y, j) z_j)``,
    which is the expectation over drawn targets.

    >>> import torch
    >>> from mmkd import NeighbourLoss, TeacherNeighbours
    >>> near = TeacherNeighbours(torch.tensor([[0], [2], [1]]), torch.tensor([[0.], [1], [1]]), {})
    >>> matrix, state = torch.tensor([[2.0], [0.5]]), torch.tensor([[1.0]])
    >>> NeighbourLoss(near)(state, matrix, torch.tensor([1])).item()
    1.5

    Args:
        neighbours: Who shares.
    """

    rows: Tensor
    shares: Tensor

    def __init__(self, neighbours: TeacherNeighbours) -> None:
        super().__init__()
        self.register_buffer("rows", neighbours.rows, persistent=False)
        self.register_buffer("shares", neighbours.shares, persistent=False)

    def forward(self, hidden: Tensor, item_matrix: Tensor, target: Tensor) -> Tensor:
        """Sum over positions; shapes as in ``RecommendationLoss``."""
        neighbours = TeacherNeighbours(self.rows, self.shares, {})
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = item_matrix.float()
            away = torch.cat([matrix.new_zeros(1, matrix.shape[1]), matrix])
            away = away - neighbours.mean(matrix)  # [I+1, D]
            return (hidden.float() * away[target]).sum()


LOSSES: dict[str, Callable[..., nn.Module]] = {
    "softmax": Softmax,
    "sampled_softmax": SampledSoftmax,
    "gbce": GBCE,
}


class _Candidates(nn.Module):
    """The items that compete with a target, numbered anew where they are not all."""

    rows: Tensor | None  # [C] int64 rows of the item matrix; None: all
    number: Tensor | None  # [I+1] int64, an item's new number

    def __init__(self, candidates: Candidates, train_counts: Counts | None) -> None:
        super().__init__()
        rows = number = None
        if candidates == "trained":
            if train_counts is None:
                raise ValueError(
                    "candidates: got trained without train_counts, wanted how often each item "
                    "trains; give split.train_counts()"
                )
            trained = torch.as_tensor(train_counts) > 0
            trained[0] = False
            rows, number = trained[1:].nonzero().squeeze(1), trained.long().cumsum(0)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("number", number, persistent=False)

    def forward(self, item_matrix: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """[I, D] and [M] in 1..I to [C, D] and [M] in 1..C."""
        if self.rows is None or self.number is None:
            return item_matrix, target
        return item_matrix.index_select(0, self.rows), self.number[target]


def _problems(options: dict[str, Any]) -> list[str]:
    return [
        *at_least(1, negatives=options.get("negatives")),
        *within(0, 1, "0 is plain binary cross-entropy", calibration=options.get("calibration")),
        *NegativeSampler.check(**options),
    ]
