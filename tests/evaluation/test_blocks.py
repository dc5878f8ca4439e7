"""Blocks of items give the ranks, lists and scores that the whole catalogue gives."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from references.ranking import reference_rank
from torch import Tensor

from mmkd import Ensemble, Evaluator, FusedItemEmbedding, Recommender, SequenceSplit
from mmkd.data.splits import Cases
from mmkd.errors import EvaluationError
from mmkd.evaluation import evaluator, rank_and_ties, top_k
from mmkd.evaluation.ranking import rank_blocks, top_k_blocks
from mmkd.student import build_backbone, item_embedding
from mmkd.student.scores import BlockScores

ITEMS, CASES = 30, 40


class Held:
    """Blocks of scores [N, I+1] that are there already; a column may be known less exactly."""

    def __init__(self, scores: Tensor, block: int, *, error: float = 0.0) -> None:
        self.scores, self.block, self.error, self.passes = scores, block, error, 0

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        self.passes += 1
        for first in range(1, self.scores.shape[1], self.block):
            yield first, self.scores[:, first : first + self.block].clone()

    def of(self, items: Tensor) -> Tensor:
        return self.scores[:, items] + self.error

    def summed(self, value: Tensor) -> Tensor:
        return value

    def beside(self, value: Tensor) -> Tensor:
        return value


def case(seed: int, levels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores full of ties, targets, and excluded pairs with repeats, padding and targets."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (CASES, ITEMS + 1), generator=g).float()
    scores[3, 5:9], scores[4] = torch.inf, -torch.inf
    target = torch.randint(1, ITEMS + 1, (CASES,), generator=g)
    row = torch.cat([torch.randint(0, CASES, (400,), generator=g), torch.arange(CASES)])
    item = torch.cat([torch.randint(0, ITEMS + 1, (400,), generator=g), target])
    return scores, target, torch.cat([row, row[:50]]), torch.cat([item, item[:50]])


@pytest.mark.parametrize("block", [1, 7, 30, 100])
@pytest.mark.parametrize("levels", [1, 5, 10_000])
def test_ranks_and_ties_of_blocks_are_those_of_all(levels: int, block: int) -> None:
    scores, target, row, item = case(levels, levels)
    held = Held(scores, block)
    excluded: dict[str, Any] = {"exclude_row": row, "exclude_item": item}
    rank, ties, items = rank_blocks(held, target, item_count=ITEMS, **excluded)
    for n in range(CASES):
        out = set(item[row == n].tolist())
        wanted = reference_rank(scores[n].tolist(), int(target[n]), out)
        assert (float(rank[n]), int(ties[n])) == wanted
    whole = rank_and_ties(scores, target, **excluded)
    assert torch.equal(rank, whole[0]) and torch.equal(ties, whole[1])
    assert items.shape == (CASES, 0) and held.passes == 1


def test_a_target_that_is_known_less_exactly_keeps_its_ties() -> None:
    scores, target, row, item = case(1, 4)
    held = Held(scores, 7, error=1e-3)
    excluded: dict[str, Any] = {"exclude_row": row, "exclude_item": item}
    rank, ties, items = rank_blocks(held, target, item_count=ITEMS, k=3, **excluded)
    assert torch.equal(rank, rank_and_ties(scores, target, **excluded)[0])
    assert torch.equal(ties, rank_and_ties(scores, target, **excluded)[1])
    assert held.passes == 2
    assert torch.equal(
        items, rank_blocks(Held(scores, 7), target, item_count=ITEMS, k=3, **excluded)[2]
    )


@pytest.mark.parametrize("k", [1, 6, 40])
@pytest.mark.parametrize("block", [1, 7, 100])
def test_lists_of_blocks_are_those_of_all(k: int, block: int) -> None:
    scores, target, row, item = case(2, 3)
    scores += torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)) / 2
    excluded: dict[str, Any] = {"exclude_row": row, "exclude_item": item}
    wanted, best = top_k(scores, k, **excluded)
    _, _, items = rank_blocks(Held(scores, block), target, item_count=ITEMS, k=k, **excluded)
    barred = torch.zeros(ITEMS + 1, dtype=torch.bool)
    found, values = top_k_blocks(Held(scores, block), k, cases=CASES, kept_out=barred, **excluded)
    distinct = (scores.isfinite()).all(1)  # among equal scores the order is not defined
    assert torch.equal(items[distinct], wanted[distinct])
    assert torch.equal(found[distinct], wanted[distinct]) and torch.equal(values, best)
    barred[[2, 9, 30]] = True
    without, _ = top_k(scores.masked_fill(barred, -torch.inf), k, **excluded)
    found, _ = top_k_blocks(Held(scores, block), k, cases=CASES, kept_out=barred, **excluded)
    assert torch.equal(found[distinct], without[distinct])
    assert not torch.isin(found, torch.tensor([2, 9, 30])).any()
    each = torch.rand(CASES, ITEMS + 1, generator=torch.Generator().manual_seed(2)) < 0.3
    own, _ = top_k(scores.masked_fill(each, -torch.inf), k, **excluded)
    found, _ = top_k_blocks(Held(scores, block), k, cases=CASES, kept_out=each, **excluded)
    assert torch.equal(found[distinct], own[distinct])


def test_no_number_in_a_block_names_the_item() -> None:
    scores = torch.zeros(3, 9)
    scores[1, 6] = torch.nan
    with pytest.raises(EvaluationError, match="item 6 in row 1 is NaN"):
        rank_blocks(Held(scores, 4), torch.tensor([1, 2, 3]), item_count=8)
    with pytest.raises(EvaluationError, match=r"row 2 has target 9; wanted an item in 1\.\.8"):
        rank_blocks(Held(scores, 4), torch.tensor([1, 2, 9]), item_count=8)


# ---- students


def students(inference: str, **options: Any) -> Ensemble:
    """Two networks, of which one reads no text and each leaves some items unknown."""
    torch.manual_seed(1)
    text = torch.randn(ITEMS + 1, 6)
    trained = torch.arange(ITEMS + 1) % 5 > 0
    present = torch.arange(ITEMS + 1) % 7 > 0
    members = [
        Recommender(
            embedding=FusedItemEmbedding(
                item_count=ITEMS,
                width=8,
                modalities={"text": text} if n else {},
                present={"text": present} if n else {},
                trained=trained,
                ids=not n or inference != "standardized",
                id_std=0.5 + n,
            ),
            backbone=build_backbone("gru4rec", width=8),
        )
        for n in range(2)
    ]
    ensemble = Ensemble(members, inference=inference, **options).eval()  # type: ignore[arg-type]
    if ensemble.untrained is not None:
        ensemble.untrained.copy_(~trained[1:])
    return ensemble


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weighted": {"weights": [1.0, 3.0]},
    "moved": {"weights": [2.0, 1.0], "untrained_offset": -1.5},
}
HISTORIES = torch.tensor([[0, 0, 3], [4, 9, 2], [1, 1, 30], [0, 5, 6]])


@pytest.mark.parametrize("inference", ["logits", "probabilities", "standardized"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("block", [4, 64])
def test_scores_of_blocks_are_those_of_all(inference: str, name: str, block: int) -> None:
    student = students(inference, **OPTIONS[name])
    whole = student.next_scores(HISTORIES)[:, 1:]
    with torch.no_grad():
        scores = BlockScores.after(student, HISTORIES, block=block)
        found = list(scores.blocks())
        some = scores.of(torch.tensor([7, 30, 7]))
    assert [first for first, _ in found] == list(range(1, ITEMS + 1, block))
    joined = torch.cat([part for _, part in found], dim=1)
    torch.testing.assert_close(joined, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some, whole[:, [6, 29, 6]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inference", ["logits", "probabilities", "standardized"])
def test_other_weights_or_another_offset_of_the_same_blocks(inference: str) -> None:
    student = students(inference, weights=[2.0, 1.0], untrained_offset=-1.5)
    histories = torch.tensor([[0, 3, 8], [5, 1, 2]])
    with torch.no_grad():
        blocks = BlockScores.after(student, histories, block=4)
        heavier = blocks.varied(weights=torch.tensor([1.0, 6.0]), offset=None)
        lower = blocks.varied(weights=None, offset=torch.tensor(-3.0))
        for found, options in (
            (heavier, {"weights": [1.0, 6.0]}),
            (lower, {"weights": [2.0, 1.0], "untrained_offset": -3.0}),
            (blocks, {"weights": [2.0, 1.0], "untrained_offset": -1.5}),
        ):
            wanted = students(inference, **options).next_scores(histories)[:, 1:]
            scores = torch.cat([block for _, block in found.blocks()], dim=1)
            torch.testing.assert_close(scores, wanted)


def test_a_member_whose_scores_are_all_alike_says_nothing_in_blocks_too() -> None:
    student = students("standardized")
    with torch.no_grad():
        for parameter in student.networks[0].parameters():
            parameter.zero_()
        found = torch.cat(
            [b for _, b in BlockScores.after(student, HISTORIES, block=4).blocks()], 1
        )
    torch.testing.assert_close(found, student.next_scores(HISTORIES)[:, 1:], rtol=1e-4, atol=1e-5)


def split_of(users: int) -> SequenceSplit:
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, users)
    everyone = np.arange(users)
    return SequenceSplit(
        items=rng.integers(1, ITEMS + 1, lengths.sum()),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        train_end=lengths - 2,
        valid=Cases(everyone, lengths - 2),
        test=Cases(everyone, lengths - 1),
        item_count=ITEMS,
    )


@pytest.mark.parametrize("exclude_seen", ["history", "none"])
@pytest.mark.parametrize("name", OPTIONS)
def test_an_evaluation_by_blocks_is_the_whole_one(
    name: str, exclude_seen: evaluator.ExcludeSeen, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, split = students("standardized", **OPTIONS[name]), split_of(60)
    alike = student.networks[1].embedding.has[1:-1, 1:].any(1).logical_not()
    assert alike.sum() > 3  # items without content: they have one score and tie
    judge = Evaluator(exclude_seen=exclude_seen, batch_size=16)
    whole = judge.ranks(student, split, split.test)
    monkeypatch.setattr(evaluator, "ITEM_BLOCK", 8)
    after = BlockScores.after
    asked: list[int] = []

    def eight(student: Ensemble, histories: Tensor) -> BlockScores:
        asked.append(len(histories))
        return after(student, histories, block=8)

    monkeypatch.setattr(BlockScores, "after", eight)
    blocks = judge.ranks(student, split, split.test)
    assert sum(asked) == 60
    assert np.array_equal(blocks.rank, whole.rank) and np.array_equal(blocks.ties, whole.ties)
    assert np.array_equal(blocks.top_items, whole.top_items)


def test_what_scores_all_items_is_asked_for_fewer_cases_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    split, sizes = split_of(20), []

    def popular(histories: Tensor) -> Tensor:
        sizes.append(len(histories))
        return torch.arange(ITEMS + 1.0).expand(len(histories), -1)

    whole = Evaluator().ranks(popular, split, split.test)
    monkeypatch.setattr(evaluator, "_CACHED_SCORES", 3 * ITEMS + 5)
    found = Evaluator().ranks(popular, split, split.test)
    assert sizes == [20, *[3] * 6, 2]
    assert np.array_equal(found.rank, whole.rank)


def test_a_sample_of_the_validation_cases_is_always_the_same() -> None:
    cases = split_of(60).valid
    some = Evaluator(cases=7).sample(cases)
    again = Evaluator(cases=7, batch_size=3).sample(cases)
    assert len(some) == 7 and np.array_equal(some.user, again.user)
    assert np.array_equal(cases.position[some.user], some.position)  # user n is case n
    assert (np.diff(some.user) > 0).all()
    assert Evaluator(cases=60).sample(cases) is Evaluator().sample(cases) is cases
    with pytest.raises(ValueError, match=r"cases: got 0, wanted at least 1"):
        Evaluator(cases=0)


@pytest.mark.parametrize("options", [{}, {"ids": False}, {"fusion": "concat"}])
def test_a_table_fused_in_parts_is_the_whole_one(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def table() -> tuple[FusedItemEmbedding, Tensor]:
        torch.manual_seed(0)
        text, image = torch.randn(ITEMS + 1, 12), torch.randn(ITEMS + 1, 6)
        present = {"text": torch.arange(ITEMS + 1) % 4 > 0}
        embedding = FusedItemEmbedding(
            item_count=ITEMS,
            width=8,
            modalities={"text": text, "image": image},
            present=present,
            **options,
        )
        with torch.no_grad():
            return embedding, embedding.table()

    whole, fused = table()
    monkeypatch.setattr(item_embedding, "_ROWS_AT_ONCE", 7)
    parts, again = table()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(again, fused, rtol=1e-5, atol=1e-7)


def test_scores_that_never_come_out_alike_are_told() -> None:
    class Wavering(Held):
        def blocks(self) -> Iterator[tuple[int, Tensor]]:
            self.scores = self.scores + 1
            return super().blocks()

    scores, target, _, _ = case(0, 5)
    with pytest.raises(EvaluationError, match="came out otherwise each time"):
        rank_blocks(Wavering(scores[:3], 7), target[:3], item_count=ITEMS)
