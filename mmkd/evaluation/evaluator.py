"""Evaluator: from a student and a split's cases to full-catalogue ranks, metrics and a report.

Batches are built on the device from the split's flat event array, sorted by history length so
that each is trimmed to its longest history. Memory is O(batch x block of items) for a student, and
bounded for any other scorer by smaller batches; no user x item matrix.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mmkd.data.splits import Cases, SequenceSplit
from mmkd.errors import EvaluationError, at_least, checked, one_of, refuse
from mmkd.evaluation.metrics import (
    CUTOFFS,
    SLICES,
    TAIL_MOST,
    coverage_at_k,
    grouped_metrics,
    head_threshold,
    metric_names,
    metrics_from_ranks,
    per_case,
    popularity_bias,
)
from mmkd.evaluation.ranking import CaseRanks, gather, rank_and_ties, rank_blocks, top_k
from mmkd.evaluation.significance import bootstrap_intervals
from mmkd.student import Ensemble, Recommender
from mmkd.student.recommender import answering
from mmkd.student.scores import ITEM_BLOCK, BlockScores

ExcludeSeen = Literal["history", "none"]
Scorer = Callable[[Tensor], Tensor]
"""Histories [B, L] int64, left-padded with 0, to scores [B, I+1]; column 0 is never read."""

LIST_LENGTH = 10  # recommended items kept per case, for coverage@10
_MOST_SCORES = 2**26  # held at once, of what scores the whole catalogue: 0.3 GB
_CACHED_SCORES = 2**22  # the same on a CPU, which passes over them several times: 16 MB
_SAMPLE_SEED = 0  # of all runs, so that they are validated on the same cases


class Processes(Protocol):
    """Who shares the work: accelerate's ``Accelerator`` or ``PartialState``."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    @property
    def process_index(self) -> int:
        """Which one it is."""

    @property
    def num_processes(self) -> int:
        """How many there are."""


class HasSplit(Protocol):
    """Such as a ``Dataset``."""

    @property
    def split(self) -> SequenceSplit:
        """What trains, validates and tests."""


@dataclass(frozen=True)
class CaseBatch:
    """Cases to be ranked together.

    Attributes:
        case: [B] int64, index into the split's cases.
        histories: [B, L] int64, left-padded.
        target: [B] int64.
        row: [P] int64, rows of the candidates that are taken out; None takes none out.
        item: [P] int64, those candidates.
    """

    case: NDArray[np.int64]
    histories: Tensor
    target: Tensor
    row: Tensor | None
    item: Tensor | None


class Evaluator:
    """Ranks every case's target among the whole catalogue; there are no sampled candidates.

    Anything that maps histories to scores is evaluated alike, here what sells best:

    >>> import numpy as np
    >>> import torch
    >>> from mmkd import Evaluator, SequenceSplit
    >>> from mmkd.data import Cases
    >>> last = Cases(user=np.array([0, 1]), position=np.array([2, 1]))
    >>> split = SequenceSplit(
    ...     items=np.array([1, 2, 3, 2, 1]), offsets=np.array([0, 3, 5]),
    ...     train_end=np.array([2, 1]), valid=last, test=last, item_count=3)
    >>> sold = torch.from_numpy(split.train_counts()).float()  # [I+1]: 0, 1, 2, 0
    >>> evaluator = Evaluator(ks=(1, 2))
    >>> ranks = evaluator.ranks(lambda histories: sold.expand(len(histories), -1), split, last)
    >>> ranks.rank  # the first has one item left to take, the second has two
    array([1., 1.])
    >>> evaluator.metrics(ranks)["NDCG@2"]
    1.0
    """

    @checked
    def __init__(
        self,
        *,
        exclude_seen: ExcludeSeen = "history",
        ks: Sequence[int] = CUTOFFS,
        batch_size: int = 512,
        resamples: int = 1000,
        cases: int | None = None,
    ) -> None:
        """Say how to evaluate.

        Args:
            exclude_seen: ``history`` takes all items of the user's events before the case out of
                the candidates, also those too old for the student to read, but never the target;
                ``none`` keeps all.
            ks: Cut-offs of HR, NDCG and MRR.
            batch_size: Cases scored at once.
            resamples: Of the bootstrap behind each interval.
            cases: Validation cases that are ranked, a sample drawn by a fixed seed, so that all
                runs on the same data are validated on the same ones; None ranks all. A test always
                ranks all of its cases.

        Raises:
            ValueError: A count below 1, no cut-off, or an unknown ``exclude_seen``.
        """
        self.exclude_seen = exclude_seen
        self.ks = tuple(ks)
        self.batch_size = batch_size
        self.resamples = resamples
        self.cases = cases

    @staticmethod
    def check(**options: Any) -> list[str]:
        """The problems of any of the constructor's options, a line each."""
        ks = tuple(options.get("ks", CUTOFFS))
        counts = {name: options.get(name) for name in ("batch_size", "resamples", "cases")}
        return [
            *one_of(get_args(ExcludeSeen), exclude_seen=options.get("exclude_seen")),
            *([] if ks else ["ks: got none, wanted at least one cut-off; such as [10]"]),
            *(line for k in ks for line in at_least(1, ks=k)),
            *at_least(1, **counts),
        ]

    def sample(self, cases: Cases) -> Cases:
        """The validation cases that are ranked: all, or some of them in their order."""
        if self.cases is None or len(cases) <= self.cases:
            return cases
        generator = np.random.default_rng(_SAMPLE_SEED)
        chosen = np.sort(generator.choice(len(cases), self.cases, replace=False))
        return Cases(cases.user[chosen], cases.position[chosen])

    def ranks(
        self,
        student: Ensemble | Recommender | Scorer,
        split: SequenceSplit,
        cases: Cases,
        *,
        processes: Processes | None = None,
        list_length: int = LIST_LENGTH,
        max_length: int | None = None,
    ) -> CaseRanks:
        """Rank every case's target, the work shared by all processes and the result by all too.

        Args:
            student: What to evaluate; any other model as a function that scores histories. A
                module is in evaluation mode meanwhile. A case without history is a row of padding.
            split: Where the events are.
            cases: Which events to predict, such as ``split.test``.
            processes: Who shares the cases; None for this process alone, where the student is. All
                of them call this where its tables lie on several.
            list_length: Recommended items kept of each case; metrics need none, 0 saves finding
                them.
            max_length: How many of the latest events are read; None for what the student reads,
                for a function all of them.

        Returns:
            All cases, ordered by case index.

        Raises:
            EvaluationError: If cases and split don't belong together, or the scores have a wrong
                shape or hold NaN.
            ValueError: `max_length` is below 1.
        """
        refuse(at_least(1, max_length=max_length))
        device = processes.device if processes else _device_of(student)
        ranked = _by_blocks(student, split.item_count, list_length)
        sharded = isinstance(student, (Ensemble, Recommender)) and student.shards is not None
        if sharded:  # all processes rank each case together, each among the items that it holds
            processes = None
        if ranked is None:
            ranked = _whole(student, split.item_count, list_length)
            most = max(1, scores_at_once(device) // split.item_count)
        else:
            most = None
        with answering(student) if isinstance(student, nn.Module) else torch.no_grad():
            # one empty part each, so that no case at all needs no other path
            case = [np.empty(0, dtype=np.int64)]
            ranks = [torch.empty(0, dtype=torch.float64, device=device)]
            ties = [torch.empty(0, dtype=torch.int64, device=device)]
            lists = [ties[0].new_empty(0, list_length)]
            for batch in self.batches(
                split, cases, student, processes=processes, max_length=max_length, most=most
            ):
                found, tied, best = ranked(batch)
                # kept on the device: a copy back per batch would wait for it each time
                case.append(batch.case)
                ranks.append(found)
                ties.append(tied)
                lists.append(best)
        order = np.concatenate(case)
        part = CaseRanks(
            case=order,
            user=cases.user[order],
            target=split.target_items(cases)[order],
            rank=torch.cat(ranks).cpu().numpy(),
            ties=torch.cat(ties).cpu().numpy(),
            top_items=torch.cat(lists).cpu().numpy(),
        )
        return part.take(np.argsort(order)) if sharded else gather(part, device=device)

    def batches(
        self,
        split: SequenceSplit,
        cases: Cases,
        student: Ensemble | Recommender | Scorer,
        *,
        processes: Processes | None = None,
        max_length: int | None = None,
        most: int | None = None,
    ) -> "Iterator[CaseBatch]":
        """This process's cases, those of like histories together; arguments as for ``ranks``.

        Args:
            split: Where the events are.
            cases: Which events to predict.
            student: Whose histories are made.
            processes: Who shares the cases.
            max_length: How many of the latest events are read.
            most: Cases a batch, where ``batch_size`` is more than can be held.

        Raises:
            EvaluationError: If cases and split don't belong together.
        """
        _check_cases(split, cases)
        device = processes.device if processes else _device_of(student)
        rank, count = (processes.process_index, processes.num_processes) if processes else (0, 1)
        case = np.arange(len(cases), dtype=np.int64)[rank::count]
        if isinstance(student, (Ensemble, Recommender)):
            max_length = max_length or student.max_length

        def on_device(values: NDArray[np.integer[Any]]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        position = cases.position[case]
        read = position if max_length is None else np.minimum(position, max_length)
        order = np.argsort(read, kind="stable")
        case, position = case[order], position[order]
        events = on_device(split.items)
        ends = on_device(split.offsets[cases.user[case]] + position)
        seen, length = on_device(position), on_device(read[order])
        size = min(self.batch_size, most or self.batch_size)
        for start in range(0, len(case), size):
            batch = slice(start, start + size)
            end = ends[batch]
            target = events[end].long()
            row = item = None
            if self.exclude_seen == "history":
                row, item = _seen_pairs(events, end, seen[batch])
                other = item != target[row]  # a repeated target stays a candidate of the list
                row, item = row[other], item[other]
            histories = _histories(events, end, length[batch])
            yield CaseBatch(case[batch], histories, target, row, item)

    def metrics(self, ranks: CaseRanks) -> dict[str, float]:
        """Plain metrics, for model selection: ``{"HR@5": ..., "NDCG@5": ..., ...}``."""
        return metrics_from_ranks(ranks.rank, self.ks, ties=ranks.ties)

    def report(
        self,
        student: CaseRanks | Ensemble | Recommender | Scorer,
        data: SequenceSplit | HasSplit,
        *,
        seed: int = 0,
    ) -> dict[str, Any]:
        """All figures of one evaluation, as plain numbers for JSON.

        Args:
            student: The ranks of all cases; or as for ``ranks``, which ranks the test cases.
            data: The split, or what has one: gives the training counts and the catalogue's size.
            seed: Of the bootstrap.

        Returns:
            ``n`` cases, ``users``, ``metrics`` {name: value}, ``intervals`` {name: [low, high]} at
            95%, ``coverage@k`` of the recommended lists, ``slices`` {cold, tail, mid, head: {n,
            metrics}}, ``slice_edges`` (fewest training events of each slice) and ``breakdown``:
            ``all``, ``warm`` and ``cold``, each as a slice, and what the ``lists`` lean towards.

        Raises:
            EvaluationError: If there is no case; or as ``ranks``.
        """
        split = data if isinstance(data, SequenceSplit) else data.split
        ranks = student
        if not isinstance(ranks, CaseRanks):
            ranks = self.ranks(ranks, split, split.test)
        if len(ranks) == 0:
            raise EvaluationError(
                "no case to evaluate: the split holds none, or all were filtered."
            )
        names = metric_names(self.ks)
        values = np.column_stack([per_case(ranks.rank, name, ties=ranks.ties) for name in names])
        ends = bootstrap_intervals(values, ranks.user, seed=seed, resamples=self.resamples)
        counts, lists = split.train_counts(), ranks.top_items
        parts = grouped_metrics(ranks.rank, ranks.target, counts, self.ks, ties=ranks.ties)
        covered = {f"coverage@{lists.shape[1]}": coverage_at_k(lists, split.item_count)}
        return {
            "n": len(ranks),
            "users": len(np.unique(ranks.user)),
            "metrics": dict(zip(names, values.mean(0).tolist(), strict=True)),
            "intervals": dict(zip(names, ends.tolist(), strict=True)),
            **covered,
            "slices": {name: parts[name] for name in SLICES},
            "slice_edges": {
                "cold": 0,
                "tail": 1,
                "mid": TAIL_MOST + 1,
                "head": head_threshold(counts),
            },
            "breakdown": {
                **{name: parts[name] for name in ("all", "warm", "cold")},
                "lists": covered | popularity_bias(lists, counts),
            },
        }


_Ranked = Callable[[CaseBatch], tuple[Tensor, Tensor, Tensor]]  # ranks, ties and lists of a batch


def scores_at_once(device: torch.device) -> int:
    """How many scores are best held at once, of what scores the whole catalogue."""
    return _CACHED_SCORES if device.type == "cpu" else _MOST_SCORES


def _whole(student: Ensemble | Recommender | Scorer, item_count: int, list_length: int) -> _Ranked:
    score = student.next_scores if isinstance(student, (Ensemble, Recommender)) else student

    def ranked(batch: CaseBatch) -> tuple[Tensor, Tensor, Tensor]:
        scores, target = score(batch.histories), batch.target
        _check_shape(scores, len(target), item_count)
        excluded = {"exclude_row": batch.row, "exclude_item": batch.item}
        found, tied = rank_and_ties(scores, target, **excluded)
        if not list_length:
            return found, tied, target.new_empty(len(target), 0)
        return found, tied, top_k(scores, list_length, **excluded)[0]

    return ranked


def _by_blocks(student: object, item_count: int, list_length: int) -> _Ranked | None:
    """None where a catalogue is scored whole: it is small, or the scorer knows no other way."""
    if not isinstance(student, (Ensemble, Recommender)):
        return None
    ensemble = Ensemble.of(student)
    if item_count <= ITEM_BLOCK and ensemble.shards is None:
        return None

    def ranked(batch: CaseBatch) -> tuple[Tensor, Tensor, Tensor]:
        return rank_blocks(
            BlockScores.after(ensemble, batch.histories),
            batch.target,
            item_count=item_count,
            exclude_row=batch.row,
            exclude_item=batch.item,
            k=list_length,
        )

    return ranked


def _histories(events: Tensor, end: Tensor, length: Tensor) -> Tensor:
    """The last events before each case, left-padded: [B, L], L the batch's longest, at least 1."""
    longest = max(1, int(length.max()))
    back = torch.arange(longest, 0, -1, device=events.device)  # events back from the case
    index = (end[:, None] - back).clamp(min=0)  # [B, L]
    return events[index].long().masked_fill(back > length[:, None], 0)


def _seen_pairs(events: Tensor, end: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """All (row, item) pairs of the cases' histories, as long as they are: [P] and [P]."""
    row = torch.repeat_interleave(torch.arange(len(seen), device=seen.device), seen)  # [P]
    before = torch.cumsum(seen, 0) - seen  # pairs of earlier rows
    step = torch.arange(len(row), device=seen.device) - before[row]
    return row, events[(end - seen)[row] + step].long()


def _device_of(student: object) -> torch.device:
    parameters = student.parameters() if isinstance(student, nn.Module) else iter(())
    first = next(parameters, None)
    return torch.device("cpu") if first is None else first.device


def _check_shape(scores: Tensor, cases: int, item_count: int) -> None:
    if tuple(scores.shape) != (cases, item_count + 1):
        raise EvaluationError(
            f"the scores are {tuple(scores.shape)}; wanted ({cases}, {item_count + 1}): a row "
            "per case, a column for padding and each item (no mask token)."
        )


def _check_cases(split: SequenceSplit, cases: Cases) -> None:
    events = np.diff(split.offsets)[cases.user]
    wrong = np.flatnonzero((cases.position < 0) | (cases.position >= events))
    if len(wrong) > 0:
        case = int(wrong[0])
        raise EvaluationError(
            f"case {case} predicts event {cases.position[case]} of user {cases.user[case]}, who "
            f"has {events[case]} events; cases and split do not belong together."
        )
