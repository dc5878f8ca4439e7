"""Evaluator: a recipe's evaluation section; from a scorer and a split to ranks and a report."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mmkd.data.sequences import Cases, SequenceSplit
from mmkd.evaluation.case_ranks import CaseRanks, gather
from mmkd.evaluation.evaluator import LIST_LENGTH, evaluate_cases
from mmkd.evaluation.metrics import CUTOFFS, metrics_from_ranks
from mmkd.evaluation.report import summarise


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
