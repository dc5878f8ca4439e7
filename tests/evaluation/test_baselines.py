"""The baselines against loops over the definitions, and what they may not have read."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from references.ranking import reference_metric, reference_rank
from torch import Tensor

from mmkd import (
    ContentKNN,
    EmbeddingTable,
    Evaluator,
    ItemKNN,
    Popularity,
    SequenceSplit,
    Transition,
)
from mmkd.data import Cases
from mmkd.evaluation import baselines

ITEMS = 25


def _split(seed: int = 0) -> SequenceSplit:
    """40 users, repeats among their events; some train nothing, items 24 and 25 never train."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 14, 40)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.minimum(rng.geometric(0.12, offsets[-1]), ITEMS - 2)
    train_end = lengths - 2
    train_end[::7] = 0
    items[offsets[1:] - 1] = rng.integers(1, ITEMS + 1, 40)  # the test may ask for any
    users = np.arange(40)
    return SequenceSplit(
        items=items,
        offsets=offsets,
        train_end=train_end,
        valid=Cases(users, lengths - 2),
        test=Cases(users.copy(), lengths - 1),
        item_count=ITEMS,
    )


def _training(split: SequenceSplit) -> list[list[int]]:
    """What each user trains, as lists."""
    return [split.sequence(u)[: split.train_end[u]].tolist() for u in range(split.user_count)]


def _histories(split: SequenceSplit) -> list[list[int]]:
    """What the test cases read, and some that are odd."""
    cases = [split.sequence(u)[:-1].tolist() for u in range(split.user_count)]
    return [*cases, [], [ITEMS], [1, ITEMS], [3, 3, 5, 3]]


def _padded(histories: list[list[int]]) -> Tensor:
    longest = max(map(len, histories))
    return torch.tensor([[0] * (longest - len(h)) + h for h in histories])


def _assert_order(scores: Tensor, wanted: list[list[Any]]) -> None:
    """Equal ranks and ties of every item, where a row of `wanted` is in any ordered type."""
    for row, reference in zip(scores.tolist(), wanted, strict=True):
        for item in range(1, len(row)):
            assert reference_rank(row, item) == reference_rank(reference, item)


def test_popularity_by_hand() -> None:
    # training: 1 2 | 2 3 | 2 1; item 4 trains nothing
    last = Cases(np.arange(3), np.array([2, 2, 2]))
    split = SequenceSplit(
        items=np.array([1, 2, 3, 2, 3, 1, 2, 1, 4]),
        offsets=np.array([0, 3, 6, 9]),
        train_end=np.array([2, 2, 2]),
        valid=last,
        test=last,
        item_count=4,
    )
    popularity = Popularity(split)
    assert popularity(torch.tensor([[1], [4]])).tolist() == [[0, 2, 3, 1, 0]] * 2
    ranks = Evaluator(ks=(1, 3)).ranks(popularity, split, last)
    # left to each: {3, 4}, {1, 4} and {3, 4}, as what was taken is out
    assert ranks.rank.tolist() == [1, 1, 2]
    everything = Evaluator(ks=(1, 3), exclude_seen="none")
    ranks = everything.ranks(popularity, split, last)
    assert ranks.rank.tolist() == [3, 2, 4] and not ranks.ties.any()
    found = everything.metrics(ranks)
    assert found["HR@3"] == pytest.approx(2 / 3)
    assert found["NDCG@3"] == pytest.approx((1 / 2 + 1 / np.log2(3)) / 3)


def test_transition_is_the_pair_counts_then_popularity() -> None:
    split, histories = _split(), _histories(_split())
    pairs: Counter[tuple[int, int]] = Counter()
    popular: Counter[int] = Counter()
    for events in _training(split):
        popular.update(events)
        for before, after in pairwise(events):
            pairs[before, after] += 1
    wanted = [
        [(pairs[h[-1] if h else 0, item], popular[item]) for item in range(ITEMS + 1)]
        for h in histories
    ]
    scores = Transition(split)(_padded(histories))
    _assert_order(scores, wanted)
    counts = torch.tensor([[count for count, _ in row] for row in wanted])
    assert torch.equal(scores.floor(), counts.to(scores))
    assert any(count > 1 for count in pairs.values()) and len(set(popular.values())) > 5


@pytest.mark.parametrize("neighbours", [1, 4, 100])
@pytest.mark.parametrize("shrinkage", [0.0, 3.0])
@pytest.mark.parametrize("block", [30, baselines._BLOCK_PAIRS])
def test_item_knn_is_the_sum_of_cosines_then_popularity(
    neighbours: int, shrinkage: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_BLOCK_PAIRS", block)
    split, histories = _split(), _histories(_split())
    training = _training(split)
    users = [{u for u, events in enumerate(training) if i in events} for i in range(ITEMS + 1)]
    near: dict[int, dict[int, float]] = {}
    for i in range(1, ITEMS + 1):
        cosines = {
            j: len(users[i] & users[j]) / (np.sqrt(len(users[i]) * len(users[j])) + shrinkage)
            for j in range(1, ITEMS + 1)
            if j != i and users[i] & users[j]
        }
        near[i] = dict(sorted(cosines.items(), key=lambda pair: (-pair[1], pair[0]))[:neighbours])
    popular = Counter(item for events in training for item in events)
    scores = ItemKNN(split, neighbours=neighbours, shrinkage=shrinkage)(_padded(histories))
    for row, history in zip(scores.tolist(), histories, strict=True):
        cosine = [sum(near[i].get(j, 0.0) for i in set(history)) for j in range(ITEMS + 1)]
        found = [j for j in range(1, ITEMS + 1) if cosine[j]]
        assert [row[j] for j in found] == pytest.approx([cosine[j] for j in found], abs=1e-6)
        # the others come behind, by popularity and nothing else
        rest = [j for j in range(1, ITEMS + 1) if not cosine[j]]
        assert all(row[j] < 0 for j in rest)
        _assert_order(
            torch.tensor([[0.0, *(row[j] for j in rest)]]), [[0, *(popular[j] for j in rest)]]
        )
    assert min(map(len, near.values())) == 0 and max(map(len, near.values())) >= min(neighbours, 9)


def test_no_validation_and_no_test_event_is_read() -> None:
    split = _split()
    trains = split.is_train()
    other = split.items.copy()
    other[~trains] = 1 + (other[~trains] + 6) % ITEMS
    leaked = replace(split, items=other)
    histories = _padded(_histories(split))
    trained = split.items.copy()
    trained[np.flatnonzero(trains)[::3]] = 9
    changed = replace(split, items=trained)
    for make in (Popularity, Transition, ItemKNN):
        scores = make(split)(histories)
        assert torch.equal(scores, make(leaked)(histories))
        assert not torch.equal(scores, make(changed)(histories))


def test_a_scorer_does_not_depend_on_padding_or_on_the_batch() -> None:
    split, histories = _split(), _histories(_split())
    together = _padded(histories)
    for scorer in (Transition(split), ItemKNN(split), ContentKNN(_table())):
        scores = scorer(together)
        for n in (0, 11, len(histories) - 1):
            torch.testing.assert_close(scorer(torch.tensor([histories[n]]))[0], scores[n])


def test_the_evaluator_ranks_them_as_one_case_at_a_time() -> None:
    split = _split()
    for scorer in (Popularity(split), Transition(split), ItemKNN(split, neighbours=3)):
        evaluator = Evaluator(batch_size=7, ks=(5,))
        ranks = evaluator.ranks(scorer, split, split.test)
        wanted = []
        for user, position in zip(split.test.user, split.test.position, strict=True):
            *history, target = split.sequence(user)[: position + 1].tolist()
            row = scorer(torch.tensor([history]))[0].tolist()
            wanted.append(reference_rank(row, target, set(history) - {target}))
        assert [(r, t) for r, t in zip(ranks.rank, ranks.ties, strict=True)] == wanted
        places, ties = zip(*wanted, strict=True)
        metric = reference_metric("NDCG", places, ties, 5)
        assert evaluator.metrics(ranks)["NDCG@5"] == pytest.approx(metric)


def test_counts_too_large_for_float32_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    split, histories = _split(), _padded(_histories(_split()))
    narrow = [make(split)(histories) for make in (Popularity, Transition, ItemKNN)]
    monkeypatch.setattr(baselines, "_EXACT_IN_FLOAT32", 1)
    wide = [make(split)(histories) for make in (Popularity, Transition, ItemKNN)]
    for few, many in zip(narrow, wide, strict=True):
        assert few.dtype == torch.float32 and many.dtype == torch.float64
        torch.testing.assert_close(few, many, check_dtype=False)


def test_a_large_catalogue_is_never_dense() -> None:
    items = 300_000  # 720 GB of pairs
    rng = np.random.default_rng(0)
    split = SequenceSplit(
        items=rng.integers(1, items + 1, 5000),
        offsets=np.arange(0, 5001, 5),
        train_end=np.full(1000, 4),
        valid=Cases(np.zeros(0, int), np.zeros(0, int)),
        test=Cases(np.zeros(0, int), np.zeros(0, int)),
        item_count=items,
    )
    first, second = split.items[:2].tolist()
    assert ItemKNN(split)(torch.tensor([[first]]))[0, second] > 0
    assert Transition(split)(torch.tensor([[first]]))[0].argmax() == second


def _table(seed: int = 0) -> EmbeddingTable:
    """Vectors of all items but 4 and 7."""
    vectors = np.random.default_rng(seed).normal(size=(ITEMS + 1, 6)).astype(np.float32)
    present = np.ones(ITEMS + 1, dtype=np.bool_)
    present[[0, 4, 7]] = False
    vectors[~present] = 0
    return EmbeddingTable(vectors, present, "mine", "text", "1")


@pytest.mark.parametrize("kept_bytes", [0, 2**20])
def test_content_knn_is_the_cosine_to_the_latest_item_that_has_a_vector(
    kept_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "_KEPT_BYTES", kept_bytes)
    monkeypatch.setattr(baselines, "_ROWS", 10)
    table = _table()
    vectors = np.asarray(table.vectors, dtype=np.float64)
    histories = [[3, 9], [9, 4, 7], [12], [ITEMS, 9, 9]]
    scores = ContentKNN(table)(_padded(histories))
    for row, asked in zip(scores.tolist(), (9, 9, 12, 9), strict=True):
        for item in range(1, ITEMS + 1):
            if item in (4, 7, asked):
                assert row[item] < -1
                continue
            lengths = np.linalg.norm(vectors[asked]) * np.linalg.norm(vectors[item])
            assert row[item] == pytest.approx(vectors[asked] @ vectors[item] / lengths, abs=1e-6)
    nothing = ContentKNN(table)(_padded([[], [4, 7]]))
    assert (nothing[:, 1:] == nothing[:, 1:2]).all()


def test_content_knn_reaches_an_item_without_events() -> None:
    vectors = np.eye(ITEMS + 1, dtype=np.float32)
    vectors[ITEMS] = vectors[5] + 0.1 * vectors[6]
    present = np.arange(ITEMS + 1) > 0
    best = ContentKNN(EmbeddingTable(vectors, present, "mine", "text", "1"))(torch.tensor([[5]]))
    assert _split().train_counts()[ITEMS] == 0
    assert best.argmax() == ITEMS
    assert Popularity(_split())(torch.tensor([[5]]))[0, ITEMS] == 0


def test_options_out_of_range_are_refused_together() -> None:
    with pytest.raises(ValueError, match=r"(?s)neighbours: got 0, .*shrinkage: got -1, wanted"):
        ItemKNN(_split(), neighbours=0, shrinkage=-1)
