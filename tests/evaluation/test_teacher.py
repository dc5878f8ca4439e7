"""What a teacher is worth, against loops that are written out."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from mmkd import EmbeddingTable, InteractionLog, SequenceSplit
from mmkd.data.splits import leave_one_out
from mmkd.errors import EvaluationError
from mmkd.evaluation.teacher import teacher_worth, validation_pairs

ITEMS = 60


def _split(seed: int = 0) -> SequenceSplit:
    """Users who mostly step to a near number, popular low numbers, two items never trained."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(150):
        item = int(rng.zipf(1.6) % (ITEMS - 2)) + 1
        for time in range(int(rng.integers(4, 9))):
            rows.append((user, item, time))
            item = int(np.clip(item + rng.integers(-3, 4), 1, ITEMS - 2))
    user, item, time = np.array(rows).T
    return leave_one_out(
        InteractionLog(user, item, time.astype(float), tuple(map(str, range(150)))), ITEMS
    )


def _table(seed: int = 1) -> EmbeddingTable:
    rng = np.random.default_rng(seed)
    place = np.arange(ITEMS + 1) / ITEMS
    vectors = np.stack([np.sin(3 * place), np.cos(3 * place), *rng.normal(0, 0.3, (6, 61))], 1)
    present = np.arange(ITEMS + 1) > 0
    present[7] = False
    vectors[~present] = 0
    return EmbeddingTable(vectors.astype(np.float32), present, "mine", "text", "1")


def _unit(table: EmbeddingTable) -> NDArray[np.float64]:
    vectors = np.asarray(table.vectors, np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float64] = vectors / np.maximum(norms, 1e-12)
    return unit


def test_auc_is_that_of_all_fair_negatives_within_what_the_draws_leave_open() -> None:
    split, table = _split(), _table()
    unit = _unit(table)
    won = asked = 0.0
    first, second, user = validation_pairs(split, table.present)
    for a, b, u in zip(first, second, user, strict=True):
        taken = set(split.sequence(u)[: split.train_end[u]].tolist())
        for other in second:
            if other in (a, b) or other in taken:
                continue
            near, far = unit[a] @ unit[b], unit[a] @ unit[other]
            won += 1.0 if near > far else 0.5 if near == far else 0.0
            asked += 1
    found = teacher_worth(table, split)
    assert found["pairs"] == len(first) < len(split.valid)
    assert found["auc"] == pytest.approx(won / asked, abs=0.01)
    assert found["auc"] > 0.6


def test_hits_hubs_popularity_and_spectrum() -> None:
    split, table = _split(), _table()
    unit, counts = _unit(table), split.train_counts()
    found = teacher_worth(table, split)
    here = np.flatnonzero(table.present)

    hits: dict[str, list[bool]] = {"tail": [], "all": []}
    for u, position in zip(split.valid.user, split.valid.position, strict=True):
        history = split.sequence(u)[:position]
        target = split.sequence(u)[position]
        asked = next(item for item in history[::-1] if table.present[item])
        score = unit @ unit[asked]
        score[~table.present] = -9
        score[asked] = -9
        rank = 1 + sum(
            score[i] > score[target]
            for i in range(1, ITEMS + 1)
            if i != target and i not in history
        )
        hits["all"].append(bool(rank <= 10) and bool(table.present[target]))
        if 1 <= counts[target] <= 5:
            hits["tail"].append(hits["all"][-1])
    assert found["hr@10"]["all"] == pytest.approx(np.mean(hits["all"]), abs=0.01)
    assert found["hr@10"]["tail"] == pytest.approx(np.mean(hits["tail"]), abs=0.02)

    cosine = unit[here] @ unit[here].T
    np.fill_diagonal(cosine, -9)
    lists = np.argsort(-cosine, axis=1)[:, :10]
    often = np.bincount(lists.ravel(), minlength=len(here))
    assert found["hubs"] == often[often > 50].sum() / lists.size
    assert found["orphans"] == (often == 0).mean()
    popular = np.log1p(counts[here])
    held = spearmanr(popular, popular[lists].mean(1)).statistic
    assert found["popularity"] == pytest.approx(held)

    centred = unit[here] - unit[here].mean(0)
    share = np.linalg.svd(centred, compute_uv=False) ** 2
    share /= share.sum()
    assert found["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert found["top10"] == pytest.approx(1.0)


def test_hubs_are_counted_where_there_are_some() -> None:
    split = _split()
    rng = np.random.default_rng(3)
    vectors = (0.5 + rng.normal(size=(ITEMS + 1, 40))).astype(np.float32)
    vectors[0], vectors[5] = 0, vectors[1:].mean(0)  # near to everybody
    found = teacher_worth(
        EmbeddingTable(vectors, np.arange(ITEMS + 1) > 0, "mine", "text", "1"), split
    )
    assert found["hubs"] > 0.05


def test_no_event_that_tests_is_read() -> None:
    split, table = _split(), _table()
    items = split.items.copy()
    at = split.offsets[split.test.user] + split.test.position
    items[at] = np.random.default_rng(9).integers(1, ITEMS + 1, len(at))
    assert teacher_worth(table, replace(split, items=items)) == teacher_worth(table, split)


def test_vectors_all_alike_say_nothing_and_none_are_refused() -> None:
    split = _split()
    vectors = np.ones((ITEMS + 1, 4), np.float32)
    vectors[0] = 0
    found = teacher_worth(
        EmbeddingTable(vectors, np.arange(ITEMS + 1) > 0, "same", "text", "1"), split
    )
    assert found["auc"] == 0.5 and found["effective_rank"] == 1.0
    nothing = EmbeddingTable(vectors, np.arange(ITEMS + 1) == 3, "one", "text", "1")
    with pytest.raises(EvaluationError, match="no validation pair"):
        teacher_worth(nothing, split)
