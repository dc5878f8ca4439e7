"""Scores of a large catalogue: states [B, d] to [B, n] scores of some items after the others.

What an ensemble scores never exists whole: at ten million items one batch would be 20 GB. Numbers
that need every item, such as a list's mean, are gathered from the blocks first.
"""

from collections.abc import Iterator, Sequence
from copy import copy

import torch
from torch import Tensor

from mmkd.student.ensemble import Ensemble, added
from mmkd.student.recommender import prompt
from mmkd.student.rows import TableShards

ITEM_BLOCK = 32_768  # items scored at once; a smaller catalogue is scored whole


class BlockScores:
    """An ensemble's scores after some histories, by blocks of items.

    They are those of ``Ensemble.next_scores`` up to rounding, which ranks the same where scores
    differ by more.

    >>> import torch
    >>> from mmkd import Ensemble, FusedItemEmbedding, GRU4Rec, Recommender
    >>> from mmkd.student.scores import BlockScores
    >>> table = FusedItemEmbedding(item_count=5, width=4)
    >>> student = Ensemble([Recommender(embedding=table, backbone=GRU4Rec(width=4))]).eval()
    >>> with torch.no_grad():
    ...     scores = BlockScores.after(student, torch.tensor([[2, 1]]), block=2)
    ...     [(first, tuple(block.shape)) for first, block in scores.blocks()]
    [(1, (1, 2)), (3, (1, 2)), (5, (1, 1))]

    Args:
        student: In evaluation mode; gradients are the caller's to switch off.
        hidden: Its members' states, N times [B, d].
        matrices: Their vectors of items, N times [I, d]; of tables over processes this process's.
        block: Items at once.

    Of tables over processes, blocks are of this process's items, and all processes make and ask
    the same together.
    """

    def __init__(
        self,
        student: Ensemble,
        hidden: Sequence[Tensor],
        matrices: Sequence[Tensor],
        *,
        block: int = ITEM_BLOCK,
    ) -> None:
        self._student = student
        self._weights, self._offset = student.weights, student.untrained_offset
        self._hidden, self._matrices = hidden, matrices
        self._block = block
        self._shards = student.shards
        self._first = 0 if self._shards is None else self._shards.items.start - 1
        self._known = student.known()
        self._normed: list[tuple[Tensor, Tensor | None]] | None = None
        self._deviation: Tensor | None = None
        if student.inference == "probabilities":
            self._normed = [(self._logsumexp(n), None) for n in range(len(hidden))]
        elif student.inference == "standardized":
            self._normed = [self._moments_of(n) for n in range(len(hidden))]
        if student.untrained_offset is not None:
            moments = _Moments(self._hidden[0])
            for columns in self._columns():
                moments.add(self._combined(columns))
            moments.join(self._shards)
            self._deviation = moments.deviation.to(hidden[0].dtype)

    @classmethod
    def after(
        cls, student: Ensemble, histories: Tensor, *, block: int = ITEM_BLOCK
    ) -> "BlockScores":
        """The scores of what comes after histories [B, L], left-padded."""
        prompts, shards = prompt(student, histories), student.shards
        if shards is not None:
            named = torch.cat([prompts.new_tensor([0, student.item_count + 1]), prompts.flatten()])
            outputs = student(shards.share_of(prompts), shards.rows(torch.unique(named)))
            hidden = [shards.joined(out.hidden[:, -1], len(prompts)) for out in outputs]
            return cls(student, hidden, [m.own_matrix() for m in student.networks], block=block)
        outputs = student(prompts)
        hidden = [out.hidden[:, -1] for out in outputs]
        return cls(student, hidden, [out.item_matrix for out in outputs], block=block)

    def varied(self, *, weights: Tensor | None, offset: Tensor | None) -> "BlockScores":
        """The same with other weights and no offset, or with the student's weights and an offset.

        Args:
            weights: [N]; None for the student's.
            offset: Of untrained items, of a student that has one; None leaves them where they are.
        """
        assert weights is None or offset is None  # a list's deviation is that of its weights
        found = copy(self)
        if weights is not None:
            found._weights = weights
        found._offset = offset
        return found

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Every block's first item and its scores [B, n], which are the caller's to change."""
        for columns in self._columns():
            yield columns.start + 1, self._scores(columns)

    def of(self, items: Tensor) -> Tensor:
        """Scores [B, K] of items [K] int64 in 1..I."""
        if self._shards is None:
            return self._scores(items - 1)
        here = (items > self._first) & (items <= self._first + len(self._matrices[0]))
        found = self._hidden[0].new_zeros(len(self._hidden[0]), len(items))
        found[:, here] = self._scores(items[here] - 1)
        return self._shards.total(found)

    def summed(self, value: Tensor) -> Tensor:
        """What was counted in all blocks there are, of which `blocks` gave this process's."""
        return value if self._shards is None else self._shards.total(value)

    def beside(self, value: Tensor) -> Tensor:
        """[B, k] of the blocks here, and those of all processes after it: [B, P k]."""
        return value if self._shards is None else torch.cat([*self._shards.gather(value)], dim=1)

    def _columns(self) -> Iterator[slice]:
        """Columns of all items, in blocks of which the matrices hold the vectors."""
        end = self._first + len(self._matrices[0])
        for start in range(self._first, end, self._block):
            yield slice(start, min(start + self._block, end))

    def _scores(self, columns: slice | Tensor) -> Tensor:
        total = self._combined(columns)
        student = self._student
        if self._offset is not None:
            assert student.untrained is not None and self._deviation is not None
            total = total + self._offset * self._deviation * student.untrained[columns]
        return total

    def _logits(self, member: int, columns: slice | Tensor) -> Tensor:
        if isinstance(columns, slice):
            held: slice | Tensor = slice(columns.start - self._first, columns.stop - self._first)
        else:
            held = columns - self._first
        return self._hidden[member] @ self._matrices[member][held].mT  # [B, n]

    def _combined(self, columns: slice | Tensor) -> Tensor:
        """As ``Ensemble.combined``, of some columns."""
        each = [self._logits(n, columns) for n in range(len(self._hidden))]
        if self._normed is not None:
            masks = [None if known is None else known[columns] for known in self._known]
            each = [
                _normed(z, norm, mask)
                for z, norm, mask in zip(each, self._normed, masks, strict=True)
            ]
        return added(each, inference=self._student.inference, weights=self._weights)

    def _logsumexp(self, member: int) -> Tensor:
        """[B, 1] of all a member's scores."""
        parts = [
            self._logits(member, columns).float().logsumexp(-1, keepdim=True)
            for columns in self._columns()
        ]
        own = torch.cat(parts, dim=1).logsumexp(-1, keepdim=True)
        return self.beside(own).logsumexp(-1, keepdim=True)

    def _moments_of(self, member: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation [B, 1] of a member's scores of what it knows; 0: all are alike."""
        moments, known = _Moments(self._hidden[member]), self._known[member]
        for columns in self._columns():
            z = self._logits(member, columns)
            moments.add(z if known is None else z[:, known[columns]])
        moments.join(self._shards)
        alike = moments.deviation <= 1e-6 * moments.mean.abs()
        deviation = moments.deviation.masked_fill(alike, 0.0)
        return moments.mean.float(), deviation.float()


class _Moments:
    """Mean and deviation of rows that come in blocks (Chan, Golub and LeVeque, 1983).

    Args:
        like: [B, ...], as many rows and on the same device as what comes.
    """

    def __init__(self, like: Tensor) -> None:
        self._count = 0
        # [B, 1] even where no block has a column, as other processes' are
        self.mean = torch.zeros(len(like), 1, dtype=torch.float64, device=like.device)
        self._square = torch.zeros_like(self.mean)

    def add(self, z: Tensor) -> None:
        """[B, n] more."""
        count = z.shape[1]
        if not count:
            return
        variance, mean = torch.var_mean(
            z if z.dtype == torch.float64 else z.float(), dim=-1, correction=0, keepdim=True
        )
        self._add(count, mean.double(), variance.double() * count)

    def join(self, shards: TableShards | None) -> None:
        """Take in the blocks of all processes."""
        if shards is None:
            return
        counts = shards.gather(torch.tensor([self._count], device=self.mean.device))
        means, squares = shards.gather(self.mean), shards.gather(self._square)
        self._count, self.mean = 0, torch.zeros_like(means[0])
        self._square = torch.zeros_like(self.mean)
        for count, mean, square in zip(counts.flatten().tolist(), means, squares, strict=True):
            if count:
                self._add(count, mean, square)

    def _add(self, count: int, mean: Tensor, square: Tensor) -> None:
        away = mean - self.mean
        both = self._count + count
        self.mean = self.mean + away * (count / both)
        between = away.square() * (self._count * count / both)
        self._square = self._square + square + between
        self._count = both

    @property
    def deviation(self) -> Tensor:
        """[B, 1] float64."""
        return (self._square / max(self._count, 1)).sqrt()


def _normed(z: Tensor, norm: tuple[Tensor, Tensor | None], known: Tensor | None) -> Tensor:
    """A member's scores less their mean, by their deviation; 0 where it says nothing."""
    mean, deviation = norm
    z = z.float() - mean
    if deviation is None:
        return z
    silent = deviation == 0
    z = z / torch.where(silent, 1.0, deviation)
    return z.masked_fill(silent if known is None else silent | ~known, 0.0)
