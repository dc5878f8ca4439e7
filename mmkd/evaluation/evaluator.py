"""Run a scorer over a split's cases: histories in batches, full-catalogue ranks out.

Batches are built on the device from the split's flat event array, sorted by history length so
that each is trimmed to its longest history. Memory is O(batch x items); no user x item matrix.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmkd.data.splits import Cases, SequenceSplit
from mmkd.errors import EvaluationError
from mmkd.evaluation.metrics import CUTOFFS, metrics_from_ranks
from mmkd.evaluation.ranking import CaseRanks, gather, rank_and_ties, top_k
from mmkd.evaluation.report import summarise

LIST_LENGTH = 10  # recommended items kept per case, for coverage@10


def evaluate_cases(
    score_batch: Callable[[Tensor], Tensor],
    *,
    split: SequenceSplit,
    cases: Cases,
    max_length: int,
    batch_size: int = 256,
    exclude_seen: Literal["history", "none"] = "history",
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    list_length: int = LIST_LENGTH,
) -> CaseRanks:
    """Rank every case's target among the whole catalogue.

    Args:
        score_batch: Maps histories [B, L] int64, left-padded with 0, L <= max_length, to scores
            [B, I+1]. Put the model in evaluation mode first; gradients are off. A case without
            history arrives as a row of padding.
        split: Where the events are.
        cases: Which events to predict: ``split.valid`` or ``split.test``.
        max_length: The scorer sees this many of the latest events before the case.
        batch_size: Cases scored at once.
        exclude_seen: ``history`` takes all items of the user's events before the case out of the
            candidates, also those older than max_length, but never the target; ``none`` keeps all.
        device: Where batches are built and ranks computed.
        rank: This process's number; it evaluates cases ``rank::world_size``.
        world_size: How many processes share the cases; join their results with
            :func:`mmkd.evaluation.ranking.gather` or ``merge``.
        progress: Called with (cases done, cases in all) after each batch.
        list_length: How many recommended items are kept of each case; 0 saves finding them.

    Returns:
        This process's cases, ordered by case index.

    Raises:
        EvaluationError: if an argument does not fit, or the scores have a wrong shape or hold NaN.
    """
    _check(split, cases, max_length, batch_size, exclude_seen, rank, world_size)
    mine = np.arange(len(cases.user), dtype=np.int64)[rank::world_size]
    user, position = cases.user[mine], cases.position[mine]
    order = np.argsort(np.minimum(position, max_length), kind="stable")
    end = torch.from_numpy(split.offsets[user] + position)[torch.from_numpy(order)].to(device)
    seen = torch.from_numpy(position[order]).to(device)
    events = torch.from_numpy(np.ascontiguousarray(split.items)).to(device)

    # one empty part each, so that no case at all needs no other path
    ranks = [torch.empty(0, dtype=torch.float64, device=device)]
    ties = [torch.empty(0, dtype=torch.int64, device=device)]
    lists = [torch.empty(0, list_length, dtype=torch.int64, device=device)]
    with torch.no_grad():
        for start in range(0, len(mine), batch_size):
            batch = slice(start, start + batch_size)
            target = events[end[batch]]
            scores = score_batch(_histories(events, end[batch], seen[batch], max_length))
            _check_shape(scores, len(target), split.item_count)
            row, item = None, None
            if exclude_seen == "history":
                row, item = _seen_pairs(events, end[batch], seen[batch])
                other = item != target[row]  # a repeated target stays a candidate in the list too
                row, item = row[other], item[other]
            target_rank, tied = rank_and_ties(scores, target, exclude_row=row, exclude_item=item)
            if list_length:
                best, _ = top_k(scores, list_length, exclude_row=row, exclude_item=item)
            else:
                best = target.new_empty(len(target), 0)
            # kept on the device: a copy back per batch would wait for it each time
            ranks.append(target_rank)
            ties.append(tied)
            lists.append(best)
            if progress is not None:
                progress(min(start + batch_size, len(mine)), len(mine))

    back = np.argsort(order)
    return CaseRanks(
        case=mine,
        user=user,
        target=split.target_items(cases)[mine],
        rank=torch.cat(ranks).cpu().numpy()[back],
        ties=torch.cat(ties).cpu().numpy()[back],
        top_items=torch.cat(lists).cpu().numpy()[back],
    )


def _histories(events: Tensor, end: Tensor, seen: Tensor, max_length: int) -> Tensor:
    """The last events before each case, left-padded: [B, L], L the batch's longest, at least 1."""
    length = seen.clamp(max=max_length)
    longest = max(1, int(length.max()))
    back = torch.arange(longest, 0, -1, device=events.device)  # events back from the case
    index = (end[:, None] - back).clamp(min=0)  # [B, L]
    return events[index].masked_fill(back > length[:, None], 0)


def _seen_pairs(events: Tensor, end: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """All (row, item) pairs of the cases' histories, as long as they are: [P] and [P]."""
    row = torch.repeat_interleave(torch.arange(len(seen), device=seen.device), seen)  # [P]
    before = torch.cumsum(seen, 0) - seen  # pairs of earlier rows
    step = torch.arange(len(row), device=seen.device) - before[row]
    return row, events[(end - seen)[row] + step]


def _check_shape(scores: Tensor, cases: int, item_count: int) -> None:
    if tuple(scores.shape) != (cases, item_count + 1):
        raise EvaluationError(
            f"score_batch gave {tuple(scores.shape)}; wanted ({cases}, {item_count + 1}): a row "
            "per case, a column for padding and each item (no mask token)."
        )


def _check(
    split: SequenceSplit,
    cases: Cases,
    max_length: int,
    batch_size: int,
    exclude_seen: str,
    rank: int,
    world_size: int,
) -> None:
    if max_length < 1 or batch_size < 1:
        raise EvaluationError(
            f"max_length {max_length} and batch_size {batch_size}: both must be at least 1."
        )
    if exclude_seen not in ("history", "none"):
        raise EvaluationError(f"exclude_seen is {exclude_seen!r}; wanted 'history' or 'none'.")
    if not 0 <= rank < world_size:
        raise EvaluationError(f"rank {rank} of {world_size} processes; wanted 0..world_size-1.")
    events = np.diff(split.offsets)[cases.user]
    wrong = np.flatnonzero((cases.position < 0) | (cases.position >= events))
    if len(wrong) > 0:
        case = int(wrong[0])
        raise EvaluationError(
            f"case {case} predicts event {cases.position[case]} of user {cases.user[case]}, who "
            f"has {events[case]} events; cases and split do not belong together."
        )


class Evaluator:
    """How a run is evaluated.

    Args:
        exclude_seen: ``history`` takes what the user already has out of the candidates.
        ks: Cut-offs of HR, NDCG and MRR.
        batch_size: Cases scored at once.
        resamples: Of the bootstrap behind each interval.

    Raises:
        ValueError: A count below 1.
    """

    def __init__(
        self,
        *,
        exclude_seen: Literal["history", "none"] = "history",
        ks: Sequence[int] = CUTOFFS,
        batch_size: int = 512,
        resamples: int = 1000,
    ) -> None:
        for name, count in (("batch_size", batch_size), ("resamples", resamples)):
            if count < 1:
                raise ValueError(f"{name}: got {count}, wanted at least 1; raise it")
        self.exclude_seen: Literal["history", "none"] = exclude_seen
        self.ks = tuple(ks)
        self.batch_size = batch_size
        self.resamples = resamples

    def ranks(
        self,
        score: Callable[[Tensor], Tensor],
        split: SequenceSplit,
        cases: Cases,
        *,
        max_length: int,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        list_length: int = LIST_LENGTH,
    ) -> CaseRanks:
        """Rank every case's target, the work shared by all processes and the result by all too.

        Args:
            score: Histories [B, L] to scores [B, I + 1].
            split: Where the events are.
            cases: Which events to predict.
            max_length: Longest history the scorer reads.
            device: Where to compute.
            rank: This process.
            world_size: How many share the cases.
            list_length: Recommended items kept of each case; metrics need none.
        """
        part = evaluate_cases(
            score,
            split=split,
            cases=cases,
            max_length=max_length,
            batch_size=self.batch_size,
            exclude_seen=self.exclude_seen,
            device=device,
            rank=rank,
            world_size=world_size,
            list_length=list_length,
        )
        return gather(part, device=device)

    def metrics(self, ranks: CaseRanks) -> dict[str, float]:
        """Plain metrics, for model selection."""
        return metrics_from_ranks(ranks.rank, self.ks, ties=ranks.ties)

    def report(self, ranks: CaseRanks, split: SequenceSplit, *, seed: int) -> dict[str, Any]:
        """Metrics with intervals, coverage and slices; see ``summarise``."""
        return summarise(ranks, split, self.ks, seed=seed, resamples=self.resamples)
