"""What a teacher is worth before anything is trained: vectors and validation pairs to figures.

From an encoder's table and a split to how well its vectors tell what goes together, how their
neighbours rank, how many of those are hubs, how much popularity they hold, and how many directions
they use. A validation pair is a validation case's target and the event before it. No event that
tests is read, not even as somebody's negative.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmkd.data.splits import SequenceSplit
from mmkd.distiller import TeacherTable, unit_rows
from mmkd.distiller.nearest import nearest
from mmkd.errors import EvaluationError
from mmkd.evaluation.baselines import ContentKNN
from mmkd.evaluation.evaluator import Evaluator
from mmkd.evaluation.metrics import SLICES, grouped_metrics

K = 10  # neighbours, and the cut-off of their hit rate
_DEALS = 20  # negatives a pair
_HUB = 5  # times as often in others' lists as an item is on average
_TOP = 10  # directions whose share of the variance is told
_CHUNK = 8192


def teacher_worth(
    table: TeacherTable,
    split: SequenceSplit,
    *,
    evaluator: Evaluator | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How much an encoder's vectors say of what goes together.

    >>> import numpy as np
    >>> from mmkd import EmbeddingTable, InteractionLog, teacher_worth
    >>> from mmkd.data import leave_one_out
    >>> user, step = np.divmod(np.arange(80), 4)  # twenty users along a circle of twenty items
    >>> users = tuple(map(str, range(20)))
    >>> log = InteractionLog(user, (user + step) % 20 + 1, step.astype(float), users)
    >>> angle = 2 * np.pi * np.arange(21) / 20
    >>> circle = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    >>> circle[0] = 0
    >>> table = EmbeddingTable(circle, np.arange(21) > 0, "circle", "text", "1")
    >>> found = teacher_worth(table, leave_one_out(log, item_count=20))
    >>> found["auc"] > 0.9, found["hr@10"]["all"], round(found["effective_rank"], 3)
    (True, 1.0, 2.0)

    Args:
        table: The encoder's vectors of the catalogue.
        split: Its training events and validation cases; its test cases are not read.
        evaluator: How neighbours are ranked; None takes the defaults.
        seed: Draws the negatives, and among equally near items.

    Returns:
        ``pairs``: validation pairs of which both items have a vector. ``auc``: how often a pair is
        nearer than the same first item with the target of another pair (20 draws each; such
        negatives are as popular as the targets are), ties half; that user's own training items are
        no negatives. ``hr@10``: hit rate of the nearest neighbours of a history's last item over
        all validation cases, and for targets that are ``cold``, ``tail``, ``mid`` and ``head``
        (None where there are none). ``hubs``: share of the places in all items' lists of 10
        neighbours that belong to items five times as often there as on average. ``orphans``: share
        of the items in nobody's list. ``popularity``: Spearman correlation of how often items and
        their neighbours train. ``effective_rank``: exp of the entropy of the covariance's
        eigenvalues (Roy and Vetterli 2007), in directions. ``top10``: share of the variance in the
        ten largest of them.

    Raises:
        EvaluationError: There is no validation pair with vectors.
    """
    rng = np.random.default_rng(seed)
    counts = split.train_counts()
    first, second, user = validation_pairs(split, table.present)
    rows = np.flatnonzero(table.present)
    lists = _neighbours(table, rows, rng)
    variances = _variances(table, rows)
    share = variances / variances.sum()
    return {
        "items": len(rows),
        "pairs": len(first),
        "auc": _auc(table, split, first, second, user, rng),
        f"hr@{K}": _hits(table, split, counts, evaluator or Evaluator()),
        **_hubs(lists, len(rows)),
        "popularity": _popularity_held(lists, counts[rows]),
        "effective_rank": float(np.exp(-(share * np.log(share.clip(min=1e-300))).sum())),
        f"top{_TOP}": float(np.sort(share)[::-1][:_TOP].sum()),
    }


def validation_pairs(
    split: SequenceSplit, present: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Rows [P] of the events before validation cases, of those cases' targets, and their users.

    Pairs of one item with itself are left out, as are those of which an item is not ``present``.

    Raises:
        EvaluationError: None is left.
    """
    cases = split.valid
    first = split.items[split.offsets[cases.user] + cases.position - 1]
    second = split.target_items(cases)
    kept = present[first] & present[second] & (first != second)
    if not kept.any():
        raise EvaluationError(
            f"no validation pair: of {len(cases)} validation cases none has two different items "
            "with a vector; encode more of the catalogue, or use another split"
        )
    return first[kept], second[kept], cases.user[kept]


def _auc(
    table: TeacherTable,
    split: SequenceSplit,
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    user: NDArray[np.int64],
    rng: np.random.Generator,
) -> float | None:
    size = split.item_count + 1
    owner = np.repeat(np.arange(split.user_count), np.diff(split.offsets))
    trains = split.is_train()
    known = np.unique(owner[trains] * size + split.items[trains])
    together = _cosines(table, first, second)
    won, asked = 0.0, 0
    for _ in range(_DEALS):
        other = second[rng.permutation(len(second))]
        fair = (other != second) & (other != first) & ~np.isin(user * size + other, known)
        apart = _cosines(table, first[fair], other[fair])
        won += float((together[fair] > apart).sum() + 0.5 * (together[fair] == apart).sum())
        asked += int(fair.sum())
    return won / asked if asked else None


def _cosines(
    table: TeacherTable, first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float32]:
    parts = [
        (_unit(table, first[part]) * _unit(table, second[part])).sum(1).numpy()
        for part in _parts(len(first))
    ]
    return np.concatenate([np.empty(0, np.float32), *parts])


def _hits(
    table: TeacherTable, split: SequenceSplit, counts: NDArray[np.int64], evaluator: Evaluator
) -> dict[str, float | None]:
    found = evaluator.ranks(ContentKNN(table), split, split.valid, list_length=0)
    parts = grouped_metrics(found.rank, found.target, counts, (K,), ties=found.ties)
    return {part: parts[part][f"HR@{K}"] for part in ("all", *SLICES)}


def _neighbours(
    table: TeacherTable, rows: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """[n, K] places in ``rows`` of each item's neighbours, -1 where there is none."""
    unit = np.concatenate([_unit(table, rows[part]).numpy() for part in _parts(len(rows))])
    near = min(K, len(rows) - 1)
    if near < 1:
        return np.empty((len(rows), 0), np.int64)
    places = nearest(unit, np.arange(len(rows)), near, rng)  # [n, near + 1], itself among them
    itself = places == np.arange(len(rows))[:, None]
    # of rows alike an item may miss itself: then its last goes
    itself[~itself.any(1), -1] = True
    others: NDArray[np.int64] = places[~itself].reshape(len(rows), near)
    return others


def _hubs(lists: NDArray[np.int64], items: int) -> dict[str, float | None]:
    listed = lists[lists >= 0]
    if not len(listed):
        return {"hubs": None, "orphans": None}
    often = np.bincount(listed, minlength=items)
    return {
        "hubs": float(often[often > _HUB * often.mean()].sum() / len(listed)),
        "orphans": float((often == 0).mean()),
    }


def _popularity_held(lists: NDArray[np.int64], counts: NDArray[np.int64]) -> float | None:
    popular = np.log1p(counts)
    listed = lists >= 0
    kept = listed.any(1)
    around = np.where(listed, popular[lists], 0.0).sum(1)[kept] / listed.sum(1)[kept]
    if len(around) < 3 or not np.ptp(popular[kept]) or not np.ptp(around):
        return None
    from scipy.stats import spearmanr  # slow to import, and few need it

    return float(spearmanr(popular[kept], around).statistic)


def _variances(table: TeacherTable, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """[D] eigenvalues of the covariance of the vectors, brought to length 1."""
    dim = table.vectors.shape[1]
    total, products = np.zeros(dim), np.zeros((dim, dim))
    for part in _parts(len(rows)):
        unit = _unit(table, rows[part]).double().numpy()
        total += unit.sum(0)
        products += unit.T @ unit
    mean = total / len(rows)
    found = np.linalg.eigvalsh(products / len(rows) - np.outer(mean, mean)).clip(min=0.0)
    # vectors that are all alike use no direction
    return found if found.sum() > 0 else np.ones(1)


def _unit(table: TeacherTable, rows: NDArray[np.int64]) -> torch.Tensor:
    return unit_rows(torch.from_numpy(np.asarray(table.vectors[rows], dtype=np.float32)))


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))
