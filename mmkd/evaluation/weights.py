"""Weights: an ensemble and validation cases to what each member's scores shall count.

A coordinate search over a coarse grid of the simplex, each point judged by the metric of the cases
at that very sum. A round scores every case once, for all of its points together.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mmkd.data.splits import Cases, SequenceSplit
from mmkd.errors import EvaluationError
from mmkd.evaluation.evaluator import Evaluator, Processes, scores_at_once
from mmkd.evaluation.metrics import per_case
from mmkd.evaluation.ranking import rank_and_ties, rank_blocks
from mmkd.student import Ensemble
from mmkd.student.ensemble import Inference, combine, standardized
from mmkd.student.recommender import answering, prompt
from mmkd.student.scores import BlockScores

_STEPS = 10  # of the grid, from 0 to 1
_ROUNDS = 5
_MOST_CASES = 20_000  # evenly spaced; a round costs as much as scoring them once a point

Shares = tuple[float, ...]


def choose_weights(
    student: Ensemble,
    split: SequenceSplit,
    cases: Cases,
    *,
    evaluator: Evaluator | None = None,
    metric: str = "NDCG@10",
    processes: Processes | None = None,
) -> list[float]:
    """The shares of the members whose weighted sum ranks the cases best.

    From equal ones on, each round tries every member at every share of the grid, the others'
    keeping their ratios, and goes to the best; it ends where none is better, so that equal weights
    stay where nothing is gained. ``student.weights``, if there are, are neither read nor set.

    >>> import numpy as np
    >>> import torch
    >>> from mmkd import Ensemble, FusedItemEmbedding, GRU4Rec, Recommender, SequenceSplit
    >>> from mmkd.data import Cases
    >>> from mmkd.evaluation import choose_weights
    >>> last = Cases(user=np.array([0]), position=np.array([2]))
    >>> split = SequenceSplit(
    ...     items=np.array([1, 2, 3]), offsets=np.array([0, 3]), train_end=np.array([1]),
    ...     valid=last, test=last, item_count=3)
    >>> tables = [FusedItemEmbedding(item_count=3, width=4) for _ in range(2)]
    >>> members = [Recommender(embedding=one, backbone=GRU4Rec(width=4)) for one in tables]
    >>> choose_weights(Ensemble(members), split, last)  # there is one candidate left to rank
    [0.5, 0.5]

    Args:
        student: Trained networks.
        split: Where the events are.
        cases: Those to choose by: the validation's, never the test's.
        evaluator: Which candidates there are; None takes the defaults.
        metric: Higher is better.
        processes: Who shares the cases; None for this process alone.

    Returns:
        [N], they sum to 1.

    Raises:
        EvaluationError: There is no case, or a score is NaN.
    """
    if not len(cases):
        raise EvaluationError("weights: there is no validation case to choose them by; fix them")
    if len(student.members) == 1:
        return [1.0]
    evaluator = evaluator or Evaluator()
    some = some_of(cases)
    best: Shares = (1 / len(student.members),) * len(student.members)
    found: dict[Shares, float] = {}
    for _ in range(_ROUNDS):
        points = [point for point in _around(best) if point not in found]
        if not points:
            break
        values = _metric_of(student, points, split, some, evaluator, metric, processes)
        found |= dict(zip(points, values, strict=True))
        before, best = best, max(found, key=lambda point: found[point])
        if found[best] <= found[before]:
            best = before
            break
    return list(best)


def some_of(cases: Cases) -> Cases:
    """At most so many that a search stays in minutes, evenly spaced."""
    every = -(-len(cases) // _MOST_CASES)
    return Cases(cases.user[::every], cases.position[::every])


def _around(point: Shares) -> list[Shares]:
    """The point itself, and every member at every share of the grid."""
    points = [point]
    for n, own in enumerate(point):
        for step in range(_STEPS + 1):
            share = step / _STEPS
            left = 1 - own
            others = [p / left if left > 0 else 1 / (len(point) - 1) for p in point]
            moved = [share if k == n else (1 - share) * p for k, p in enumerate(others)]
            points.append(tuple(round(p, 6) for p in moved))
    return list(dict.fromkeys(points))


def _metric_of(
    student: Ensemble,
    points: Sequence[Shares],
    split: SequenceSplit,
    cases: Cases,
    evaluator: Evaluator,
    metric: str,
    processes: Processes | None,
) -> list[float]:
    """The mean metric of the cases at each of the points."""
    mode: Inference = "probabilities" if student.inference == "probabilities" else "logits"
    weights = torch.tensor(points, dtype=torch.float32)

    def at_points(histories: Tensor) -> Iterator[Tensor | BlockScores]:
        if student.shards is not None:
            scores = BlockScores.after(student, histories)
            for point in weights.to(histories.device):
                yield scores.varied(weights=point, offset=None)
            return
        each = list(_scores(student, histories))
        for point in weights.to(histories.device):
            yield combine(each, inference=mode, weights=point)

    sums, counts = gains(
        student, at_points, len(points), split, cases, evaluator, metric, processes
    )
    return [float(total) for total in sums.sum(1) / counts.sum()]


def gains(
    student: Ensemble,
    variants: Callable[[Tensor], Iterable[Tensor | BlockScores]],
    count: int,
    split: SequenceSplit,
    cases: Cases,
    evaluator: Evaluator,
    metric: str,
    processes: Processes | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The metric of each way of scoring, the cases scored once for all of them.

    Args:
        student: Whose histories are made.
        variants: Histories [B, L] to ``count`` scores [B, I]; or to those by blocks, of tables over
            processes, each of which then has all cases.
        count: V.
        split: Where the events are.
        cases: To rank.
        evaluator: Which candidates there are.
        metric: Of a case.
        processes: Who shares the cases.

    Returns:
        [V, 2] the metric's sums, over cases on items that train and on those that never do, and [2]
        how many of each there are.
    """
    trains = split.train_counts() > 0
    # the members' scores are kept beside one way of adding them up
    held = split.item_count * (len(student.members) + 1)
    most: int | None = max(1, scores_at_once(next(student.parameters()).device) // held)
    if student.shards is not None:
        processes, most = None, None
    sums, counts = np.zeros((count, 2)), np.zeros(2)
    with answering(student):
        for batch in evaluator.batches(split, cases, student, processes=processes, most=most):
            cold = ~trains[batch.target.cpu().numpy()]
            counts += [np.sum(~cold), np.sum(cold)]
            for number, scores in enumerate(variants(batch.histories)):
                excluded: dict[str, Any] = {"exclude_row": batch.row, "exclude_item": batch.item}
                if isinstance(scores, BlockScores):
                    ranks, ties, _ = rank_blocks(
                        scores, batch.target, item_count=split.item_count, **excluded
                    )
                else:
                    ranks, ties = rank_and_ties(F.pad(scores, (1, 0)), batch.target, **excluded)
                values = per_case(ranks.cpu().numpy(), metric, ties=ties.cpu().numpy())
                sums[number] += [values[~cold].sum(), values[cold].sum()]
    if student.shards is None and dist.is_available() and dist.is_initialized():
        shared = torch.from_numpy(np.vstack([sums, counts])).to(
            processes.device if processes else "cpu"
        )
        dist.all_reduce(shared)
        sums, counts = np.split(shared.cpu().numpy(), [count])
        counts = counts[0]
    return sums, counts


def _scores(student: Ensemble, histories: Tensor) -> Iterator[Tensor]:
    """What is added up, by member [B, I]: its scores, standardised where they are to be."""
    outputs = student(prompt(student, histories))
    for out, known in zip(outputs, student.known(), strict=True):
        logits = out.hidden[:, -1] @ out.item_matrix.mT
        yield standardized(logits, known)[0] if student.inference == "standardized" else logits
