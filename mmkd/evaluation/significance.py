"""Is it real? Two runs' ranks to a paired test of their difference; intervals of a mean.

The unit that is resampled is the user: the cases of one user are not independent, so they are
drawn, or change sides, together. Percentile bootstrap: Efron and Tibshirani, An Introduction to
the Bootstrap, chapter 13. Permutation by sign flips, with the observed sample counted among the
permutations so that p is never 0: Phipson and Smyth, arXiv:1603.05766.

A recipe trained with several seeds is a crossed design, every seed ranks every user's cases. There
users and seeds are both drawn, and a case counts as often as its user times its seed: the
pigeonhole bootstrap of Owen, arXiv:0712.1111. A handful of seeds shows too little of their spread,
so what is drawn of it is widened as in the expanded percentile interval of Hesterberg,
arXiv:1411.5279: by sqrt(S / (S - 1)), and by Student's quantile over the normal one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from mmkd.errors import EvaluationError
from mmkd.evaluation.metrics import per_case
from mmkd.evaluation.ranking import CaseRanks

_CHUNK_NUMBERS = 4_000_000  # random numbers held at once, about 32 MB


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number, step down (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, worst = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = worst
    return corrected


def compare(
    first: CaseRanks | Sequence[CaseRanks],
    second: CaseRanks | Sequence[CaseRanks],
    *,
    metric: str = "NDCG@10",
    seed: int = 0,
    permutations: int = 10_000,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Is one run better than another on the same cases?

    Args:
        first: One run's cases; or those of several seeds, of which every case is then the mean.
        second: The other's, likewise.
        metric: Which metric to compare.
        seed: Of the bootstrap and the permutations.
        permutations: Of the test.
        resamples: Of the bootstrap interval of the difference.

    Returns:
        ``metric``, ``first``, ``second``, ``difference``, its 95% ``interval``, ``p_value``,
        ``users`` and ``permutations``; with several seeds ``seeds``, how many on each side. The
        interval is then over users and seeds; p is over users, for these seeds.

    Raises:
        EvaluationError: if the runs evaluated different cases.
    """
    sides = [[one] if isinstance(one, CaseRanks) else [*one] for one in (first, second)]
    base = sides[0][0]
    for other in (ranks for side in sides for ranks in side):
        _check_same_cases(base, other)
    by_first, by_second = (
        np.stack([per_case(ranks.rank, metric, ties=ranks.ties) for ranks in side])
        for side in sides
    )  # [S, N] and [T, N]
    a, b = by_first.mean(0), by_second.mean(0)
    p_value = paired_permutation_test(a, b, base.user, permutations=permutations, seed=seed)
    ends = difference_interval(by_first, by_second, base.user, seed=seed, resamples=resamples)
    several = {"seeds": [len(side) for side in sides]} if max(map(len, sides)) > 1 else {}
    return {
        "metric": metric,
        "first": float(a.mean()),
        "second": float(b.mean()),
        "difference": float((a - b).mean()),
        "interval": ends.tolist(),
        "p_value": p_value,
        "users": len(np.unique(base.user)),
        "permutations": permutations,
        **several,
    }


def difference_interval(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    users: NDArray[np.int64],
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> NDArray[np.float64]:
    """The 95% interval of a difference of means; users are drawn, and seeds if there are several.

    Args:
        first: [S, N] per-case values of one side's seeds.
        second: [T, N] those of the other's, whose seeds have nothing to do with the first's.
        users: [N] user of each case.
        seed: Of the draws.
        resamples: How many.

    Returns:
        [2] lower and upper end.

    Raises:
        EvaluationError: As for ``bootstrap_intervals``.
    """
    count = len(first)
    if count == len(second) == 1:
        change = (first[0] - second[0])[:, None]
        ends = bootstrap_intervals(change, users, seed=seed, resamples=resamples)
        return np.asarray(ends[0])
    columns = np.concatenate([first, second]).T  # [N, S + T]
    means = np.concatenate([*_resampled(columns, users, resamples, seed)])[..., None]
    generator = np.random.default_rng((seed, 1))
    drawn = _over_seeds(means[:, :count], generator) - _over_seeds(means[:, count:], generator)
    return np.asarray(_percentiles(drawn)[0])


def crossed_intervals(
    values: NDArray[np.float64],
    users: NDArray[np.int64],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Percentile intervals of the mean over seeds and cases, seeds and users both drawn.

    >>> import numpy as np
    >>> same = np.tile([[[0.0], [1.0]]], (3, 1, 1))  # three seeds that agree on two users
    >>> crossed_intervals(same, np.array([0, 1])).tolist()
    [[0.0, 1.0]]

    Args:
        values: [S, N, M] per-case values of M metrics by S seeds; with one seed, users alone are
            drawn.
        users: [N] user of each case.
        level: Share of resamples inside the interval.
        resamples: How many samples to draw.
        seed: Of the draws.

    Returns:
        [M, 2] lower and upper ends.

    Raises:
        EvaluationError: if there is no seed or case, or an argument does not fit.
    """
    if values.ndim != 3 or not len(values):
        raise EvaluationError(f"values {values.shape}; wanted [S, N, M], S at least 1.")
    count, cases, metrics = values.shape
    columns = values.transpose(1, 0, 2).reshape(cases, count * metrics)
    means = np.concatenate([*_resampled(columns, users, resamples, seed, level)])
    generator = np.random.default_rng((seed, 1))
    drawn = _over_seeds(means.reshape(-1, count, metrics), generator, level)
    return _percentiles(drawn, level)


def paired_permutation_test(
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    users: NDArray[np.int64],
    *,
    permutations: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided test that two runs' per-case values have the same mean.

    Args:
        first: [N] per-case values of one run.
        second: [N] those of the other, case by case.
        users: [N] user of each case; a user's cases change sides together.
        permutations: How many random sign flips to draw.
        seed: Of the flips.

    Returns:
        p = (1 + flips at least as extreme) / (1 + flips), in 1/(permutations+1)..1.

    Raises:
        EvaluationError: if the arrays differ in length, are empty, or permutations < 1.
    """
    if not first.shape == second.shape == users.shape or first.ndim != 1 or len(first) == 0:
        raise EvaluationError(
            f"first {first.shape}, second {second.shape}, users {users.shape}; wanted all [N], "
            "N at least 1, case by case."
        )
    if permutations < 1:
        raise EvaluationError(f"permutations is {permutations}; wanted at least 1.")
    change = _per_user((first - second)[:, None], users)[:, 0]  # [U]
    observed = abs(change.sum())
    moved = change[change != 0.0]  # a zero has no sign to flip
    # equal sums differ in their last bits by the order of addition: count those as equal
    reached = observed - 1e-12 * np.abs(moved).sum()
    generator = np.random.default_rng(seed)
    extreme = 0
    for size in _chunks(permutations, len(moved)):
        bits = np.frombuffer(generator.bytes(size * (len(moved) // 8 + 1)), dtype=np.uint8)
        flip = np.unpackbits(bits.reshape(size, -1), axis=1, count=len(moved))  # [size, U]
        total = moved.sum() - 2.0 * (flip.astype(np.float64) @ moved)
        extreme += int((np.abs(total) >= reached).sum())
    return (extreme + 1) / (permutations + 1)


def bootstrap_intervals(
    values: NDArray[np.float64],
    users: NDArray[np.int64],
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Percentile intervals of the mean over cases, users drawn with replacement.

    Args:
        values: [N, M] per-case values of M metrics; all see the same resamples.
        users: [N] user of each case.
        level: Share of resamples inside the interval.
        resamples: How many samples of users to draw.
        seed: Of the draws.

    Returns:
        [M, 2] lower and upper ends.

    Raises:
        EvaluationError: if there is no case, or an argument does not fit.
    """
    return _percentiles(np.concatenate([*_resampled(values, users, resamples, seed, level)]), level)


def _resampled(
    values: NDArray[np.float64],
    users: NDArray[np.int64],
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> Iterator[NDArray[np.float64]]:
    """Means [R, M] of samples of users, some at a time; the arguments are checked."""
    if values.ndim != 2 or users.shape != values.shape[:1] or len(users) == 0:
        raise EvaluationError(
            f"values {values.shape} and users {users.shape}; wanted [N, M] and [N], N at least 1."
        )
    if not 0.0 < level < 1.0 or resamples < 1:
        raise EvaluationError(
            f"level {level} and resamples {resamples}; wanted a level inside 0..1, e.g. 0.95, and "
            "at least 1 resample."
        )
    sums = _per_user(np.column_stack([values, np.ones(len(values))]), users)  # [U, M+1]
    count = len(sums)
    generator = np.random.default_rng(seed)
    for size in _chunks(resamples, count):
        drawn = generator.integers(count, size=(size, count))
        drawn += np.arange(size)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        total = times.astype(np.float64) @ sums  # [size, M+1]
        yield total[:, :-1] / total[:, -1:]


def _over_seeds(
    means: NDArray[np.float64], generator: np.random.Generator, level: float = 0.95
) -> NDArray[np.float64]:
    """Means [R, S, M] by seed to [R, M] over seeds drawn with replacement, their spread widened."""
    count = means.shape[1]
    middle: NDArray[np.float64] = means.mean(1)
    if count == 1:
        return middle
    tail = (1.0 + level) / 2.0
    wider = np.sqrt(count / (count - 1)) * t.ppf(tail, count - 1) / norm.ppf(tail)
    often = generator.multinomial(count, np.full(count, 1 / count), size=len(means))  # [R, S]
    away: NDArray[np.float64] = np.einsum("rs,rsm->rm", often / count - 1 / count, means)
    return np.asarray(middle + wider * away)


def _percentiles(means: NDArray[np.float64], level: float = 0.95) -> NDArray[np.float64]:
    """The ends [M, 2] between which a share of the means [R, M] lies."""
    tail = (1.0 - level) / 2.0
    ends: NDArray[np.float64] = np.quantile(means, [tail, 1.0 - tail], axis=0).T
    return ends


def _check_same_cases(first: CaseRanks, second: CaseRanks) -> None:
    names = ("case", "user", "target")
    if not all(np.array_equal(getattr(first, n), getattr(second, n)) for n in names):
        raise EvaluationError(
            f"the runs evaluated different cases ({len(first)} and {len(second)}); compare runs of "
            "one data set, one split and one of valid or test."
        )


def _per_user(values: NDArray[np.float64], users: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sum the cases of each user: [N, M] to [U, M]."""
    known, index = np.unique(users, return_inverse=True)
    columns = [np.bincount(index, weights=v, minlength=len(known)) for v in values.T]
    return np.column_stack(columns)


def _chunks(total: int, width: int) -> list[int]:
    """Split `total` rows of `width` numbers into pieces that fit the memory budget."""
    size = max(1, min(total, _CHUNK_NUMBERS // max(1, width)))
    return [min(size, total - start) for start in range(0, total, size)]
