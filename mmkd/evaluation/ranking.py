"""Full-catalogue ranking: scores [N, I+1] to the target's rank [N], and to the k best items.

Ties never flatter: ``rank = 1 + #(score > target's) + #(other items at the target's score) / 2``,
so a scorer that gives every item one score ranks every target in the middle of the catalogue.
No sampled candidates anywhere. What several processes ranked is joined case by case: every metric
is computed once, from all cases, never as a mean of the processes' means.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmkd.errors import EvaluationError


@dataclass(frozen=True)
class CaseRanks:
    """Ranks and recommended lists, one row per evaluated case, ordered by case index.

    Attributes:
        case: [N] int64, index into the split's cases.
        user: [N] int64.
        target: [N] int64, the item the case is about.
        rank: [N] float64, 1 for the best, halves where items tie.
        ties: [N] int64, other items at the target's score.
        top_items: [N, k] int64, best first; 0 where fewer than k items could be recommended.
    """

    case: NDArray[np.int64]
    user: NDArray[np.int64]
    target: NDArray[np.int64]
    rank: NDArray[np.float64]
    ties: NDArray[np.int64]
    top_items: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check that the arrays belong together.

        Raises:
            EvaluationError: if their lengths differ.
        """
        lengths = {field.name: len(getattr(self, field.name)) for field in fields(self)}
        if len(set(lengths.values())) > 1 or self.top_items.ndim != 2:
            raise EvaluationError(f"the arrays of CaseRanks differ in length: {lengths}.")

    def __len__(self) -> int:
        """Number of cases."""
        return len(self.case)

    def take(self, rows: NDArray[np.int64]) -> "CaseRanks":
        """The given rows, in the given order."""
        return CaseRanks(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def merge(parts: Sequence[CaseRanks]) -> CaseRanks:
    """Join the processes' parts, ordered by case index; a case ranked twice counts once."""
    joined = CaseRanks(
        **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(CaseRanks)}
    )
    return joined.take(np.unique(joined.case, return_index=True)[1])


def gather(part: CaseRanks, *, device: torch.device | str = "cpu") -> CaseRanks:
    """Collect every process's part, on every process; without torch.distributed, the part itself.

    Only plain tensors are exchanged.

    Args:
        part: This process's cases.
        device: Where the process group communicates: "cpu" for gloo, this process's GPU for NCCL.

    Returns:
        The merged cases of all processes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return merge([part])
    columns = (part.case, part.user, part.target, part.ties, part.rank.view(np.int64))
    own = torch.from_numpy(np.column_stack([*columns, part.top_items])).to(device)  # [n, 5 + k]
    counts = [own.new_zeros(1) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own.new_tensor([len(own)]))
    # all_gather wants equal shapes: pad to the longest part, cut each back to its own length
    longest = max(int(count) for count in counts)
    tables = [own.new_empty(longest, own.shape[1]) for _ in counts]
    dist.all_gather(tables, F.pad(own, (0, 0, 0, longest - len(own))))
    parts = []
    for count, table in zip(counts, tables, strict=True):
        rows = table[: int(count)].cpu().numpy()
        case, user, target, ties, rank = np.ascontiguousarray(rows[:, :5].T)
        parts.append(CaseRanks(case, user, target, rank.view(np.float64), ties, rows[:, 5:]))
    return merge(parts)


def rank_and_ties(
    scores: Tensor,
    target: Tensor,
    *,
    exclude_row: Tensor | None = None,
    exclude_item: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Rank of each case's target among all items that are not excluded, and its ties.

    With the tie count, :func:`mmkd.evaluation.metrics.metrics_from_ranks` gives the exact
    expectation over a random order of the tied items.

    Args:
        scores: [N, I+1] any floating type and device; higher is better. Column 0 is padding and
            never counts. Infinite scores are fine, NaN is an error. Not modified.
        target: [N] int64, the item (1..I) each case is about.
        exclude_row: [P] int64, row of an excluded (row, item) pair; None excludes nothing.
        exclude_item: [P] int64, item of that pair. A pair given twice counts once, item 0 is
            ignored, and a row's own target is never excluded.

    Returns:
        Ranks [N] float64, 1 for the best, halves where items tie with the target; and how many
        other items share its score, [N] int64.

    Raises:
        EvaluationError: if a shape or an index does not fit, or a score is NaN.
    """
    _check_scores(scores)
    _check_targets(target, len(scores), scores.shape[1])
    own = scores.gather(1, target[:, None])  # [N, 1]
    row, item = _exclusions(scores.shape, scores.device, exclude_row, exclude_item)
    other = item != target[row]
    greater, tied = _counts(scores[:, 1:], own, row[other], item[other] - 1)
    tied -= 1  # the target itself
    return 1.0 + greater.double() + tied.double() / 2.0, tied


class Blocks(Protocol):
    """Scores of a catalogue's items by blocks, such as ``BlockScores``."""

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Every block's first item and scores [N, n]; the same bits each time it is asked."""

    def of(self, items: Tensor) -> Tensor:
        """Scores [N, K] of items [K]."""

    def summed(self, value: Tensor) -> Tensor:
        """The sum over all processes that have blocks of their own; alone the value itself."""

    def beside(self, value: Tensor) -> Tensor:
        """[N, k] of all those processes, side by side; alone the value itself."""


_PASSES = 4  # of `rank_blocks` over all scores; one where the first guess is right


def rank_blocks(
    scores: Blocks,
    target: Tensor,
    *,
    item_count: int,
    exclude_row: Tensor | None = None,
    exclude_item: Tensor | None = None,
    k: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Ranks, ties and lists, of scores that never exist whole.

    Args:
        scores: By blocks; each is changed.
        target: As for :func:`rank_and_ties`, and so the following.
        item_count: I.
        exclude_row: [P] int64 or None.
        exclude_item: [P] int64 or None.
        k: Items a list; 0 makes none.

    Returns:
        Ranks and ties as :func:`rank_and_ties` gives them, and items [N, k] as :func:`top_k`.

    Raises:
        EvaluationError: As those; or the scores are others each time that they are made.
    """
    cases = len(target)
    _check_targets(target, cases, item_count + 1)
    shape = torch.Size([cases, item_count + 1])
    row, item = _by_item(*_exclusions(shape, target.device, exclude_row, exclude_item))
    own = scores.of(target).diagonal()[:, None].clone()  # [N, 1]
    for _ in range(_PASSES):
        greater, tied = (torch.zeros_like(target) for _ in range(2))
        seen, best = torch.zeros_like(own), _Best(cases, k, target.device)
        for first, block in scores.blocks():
            _check_nan(block, first)
            end = first + block.shape[1]
            here = ((target >= first) & (target < end)).nonzero()[:, 0]
            seen[here, 0] = block[here, target[here] - first]
            some = _within(item, first, end)
            other = item[some] != target[row[some]]
            more, equal = _counts(block, own, row[some][other], item[some][other] - first)
            greater += more
            tied += equal
            if k:
                block[row[some], item[some] - first] = -torch.inf
                best.add(block, first)
        seen = scores.summed(seen)  # each target lies in one block
        if torch.equal(seen, own):
            break
        own = seen  # a product of other columns may differ in the last bit, and would hide a tie
    else:
        raise EvaluationError(
            "the same scores came out otherwise each time, so ties can't be told; is the student "
            "in training mode, or its dropout on?"
        )
    greater, tied = scores.summed(greater), scores.summed(tied) - 1  # without the target itself
    best.join(scores)
    return 1.0 + greater.double() + tied.double() / 2.0, tied, best.items


def top_k_blocks(
    scores: Blocks,
    k: int,
    *,
    cases: int,
    kept_out: Tensor,
    exclude_row: Tensor | None = None,
    exclude_item: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`top_k`, of scores that never exist whole.

    Args:
        scores: By blocks; each is changed.
        k: Items a list.
        cases: N.
        kept_out: [I+1] bool, items that are in no list; or [N, I+1], of each list its own.
        exclude_row: [P] int64 or None.
        exclude_item: [P] int64 or None.

    Raises:
        EvaluationError: As there.
    """
    shape, device = torch.Size([cases, kept_out.shape[-1]]), kept_out.device
    row, item = _by_item(*_exclusions(shape, device, exclude_row, exclude_item))
    best = _Best(cases, k, device)
    for first, block in scores.blocks():
        _check_nan(block, first)
        end = first + block.shape[1]
        some = _within(item, first, end)
        block[row[some], item[some] - first] = -torch.inf
        best.add(block.masked_fill_(kept_out[..., first:end], -torch.inf), first)
    best.join(scores)
    return best.items, best.scores


def top_k(
    scores: Tensor,
    k: int,
    *,
    exclude_row: Tensor | None = None,
    exclude_item: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best items of each row, best first.

    Args:
        scores: [N, I+1]; column 0 is never returned. Not modified.
        k: How many items, at least 1.
        exclude_row: [P] int64 or None, as in :func:`rank_and_ties`.
        exclude_item: [P] int64 or None.

    Returns:
        Items [N, k] int64 and their scores [N, k]. Where fewer than k items are left, the rest of
        the row is item 0 with score -inf; an item the model scores -inf counts as not there. The
        order among equal scores is not defined.

    Raises:
        EvaluationError: if k < 1, a shape or an index does not fit, or a score is NaN.
    """
    if k < 1:
        raise EvaluationError(f"top_k got k={k}; ask for at least 1 item.")
    _check_scores(scores)
    row, item = _exclusions(scores.shape, scores.device, exclude_row, exclude_item)
    allowed = scores.clone()
    allowed[:, 0] = -torch.inf
    allowed[row, item] = -torch.inf
    best, items = allowed.topk(min(k, scores.shape[1]), dim=1)
    items = items.masked_fill(best == -torch.inf, 0)
    missing = k - items.shape[1]
    if missing > 0:
        items = F.pad(items, (0, missing))
        best = F.pad(best, (0, missing), value=-torch.inf)
    return items, best


class _Best:
    """The k best items of each of N rows, of blocks that come one after the other."""

    def __init__(self, cases: int, k: int, device: torch.device) -> None:
        self.items = torch.zeros(cases, k, dtype=torch.int64, device=device)
        self.scores = torch.full((cases, k), -torch.inf, device=device)

    def add(self, block: Tensor, first: int) -> None:
        """Scores [N, n] of the items from ``first`` on; -inf is in no list."""
        found, at = block.topk(min(self.items.shape[1], block.shape[1]), dim=1)
        items = torch.cat([self.items, (at + first).masked_fill(found == -torch.inf, 0)], dim=1)
        self._keep(torch.cat([self.scores, found], dim=1), items)

    def join(self, blocks: Blocks) -> None:
        """Take in what other processes found in their blocks."""
        if self.items.shape[1]:
            self._keep(blocks.beside(self.scores), blocks.beside(self.items))

    def _keep(self, scores: Tensor, items: Tensor) -> None:
        self.scores, order = scores.topk(self.items.shape[1], dim=1)
        self.items = items.gather(1, order)


def _counts(scores: Tensor, own: Tensor, row: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    """How many scores [N, n] are above [N, 1], and how many equal, without some (row, column)s."""
    greater, tied = _true(scores > own), _true(scores == own)
    value, mine = scores[row, item], own[row, 0]  # [P]
    greater.index_add_(0, row, (value > mine).long(), alpha=-1)
    tied.index_add_(0, row, (value == mine).long(), alpha=-1)
    return greater, tied


def _true(mask: Tensor) -> Tensor:
    """How many of each row [N, n] are true, [N] int64."""
    if mask.device.type != "cpu":
        return mask.sum(1)
    # torch's sum of booleans makes a copy of each as a number first: four times slower
    return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1))


def _by_item(row: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    item, order = item.sort()
    return row[order], item


def _within(item: Tensor, first: int, end: int) -> slice:
    """Which of ascending items lie in a block."""
    ends = torch.searchsorted(item, torch.tensor([first, end], device=item.device))
    return slice(*ends.tolist())


def _check_scores(scores: Tensor) -> None:
    if scores.dim() != 2 or scores.shape[1] < 2 or not scores.is_floating_point():
        raise EvaluationError(
            f"scores are {tuple(scores.shape)} {scores.dtype}; wanted floating point [N, I+1] "
            "with a column for padding and at least one item."
        )
    _check_nan(scores[:, 1:], 1)


def _check_nan(scores: Tensor, first: int) -> None:
    """Refuse scores [N, n] of the items from ``first`` on that are no numbers."""
    # a maximum is NaN if any entry is: one pass and no temporary of the size of the scores
    bad = scores.amax(1).isnan().nonzero()[:, 0]
    if len(bad) > 0:
        case = int(bad[0])
        item = int(scores[case].isnan().nonzero()[0, 0]) + first
        raise EvaluationError(
            f"the score of item {item} in row {case} is NaN ({len(bad)} of {len(scores)} rows "
            "hold NaN); the model diverged or met an input it cannot handle: check its loss and "
            "lower the learning rate."
        )


def _check_targets(target: Tensor, cases: int, width: int) -> None:
    if target.shape != (cases,) or target.dtype != torch.int64:
        raise EvaluationError(
            f"target is {tuple(target.shape)} {target.dtype}; wanted [{cases}] int64, "
            "one item per row of the scores."
        )
    wrong = ((target < 1) | (target >= width)).nonzero()[:, 0]
    if len(wrong) > 0:
        case = int(wrong[0])
        raise EvaluationError(
            f"row {case} has target {int(target[case])}; wanted an item in "
            f"1..{width - 1} (0 is padding)."
        )


def _exclusions(
    shape: torch.Size, device: torch.device, row: Tensor | None, item: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Excluded pairs of [N, I+1] without repeats and without padding: [P'] rows, [P'] items."""
    if row is None and item is None:
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        return nothing, nothing
    if row is None or item is None or row.shape != item.shape or row.dim() != 1:
        raise EvaluationError(
            "exclude_row and exclude_item must both be given, both [P]: one pair per position."
        )
    cases, width = shape
    if bool(((row < 0) | (row >= cases) | (item < 0) | (item >= width)).any()):
        raise EvaluationError(
            f"an excluded pair lies outside the scores; wanted rows in 0..{cases - 1} and items in "
            f"0..{width - 1}."
        )
    pair = torch.unique(row[item > 0] * width + item[item > 0])
    return pair // width, pair % width
