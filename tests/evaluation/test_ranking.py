"""Ranks and top-k lists against a loop over candidates."""

import pytest
import torch
from references.ranking import reference_rank
from torch import Tensor

from mmkd.errors import EvaluationError
from mmkd.evaluation import rank_and_ties, top_k


def _case(seed: int, levels: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores full of ties, targets, and excluded pairs with repeats, padding and targets."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (40, 31), generator=g).double()
    target = torch.randint(1, 31, (40,), generator=g)
    row = torch.randint(0, 40, (400,), generator=g)
    item = torch.randint(0, 31, (400,), generator=g)
    row = torch.cat([row, row[:50], torch.arange(40)])
    item = torch.cat([item, item[:50], target])
    return scores, target, row, item


def _excluded(row: Tensor, item: Tensor, case: int) -> set[int]:
    return set(item[row == case].tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("levels", [2, 7, 1000])
def test_ranks_match_a_loop_over_candidates(dtype: torch.dtype, levels: int) -> None:
    scores, target, row, item = _case(levels, levels)
    scores = scores.to(dtype)
    before = scores.clone()
    rank, ties = rank_and_ties(scores, target, exclude_row=row, exclude_item=item)
    for case in range(len(scores)):
        expected = reference_rank(
            scores[case].tolist(), int(target[case]), _excluded(row, item, case)
        )
        assert (float(rank[case]), int(ties[case])) == expected
    assert rank.dtype == torch.float64
    assert torch.equal(scores, before)


def test_hand_worked_ranks() -> None:
    scores = torch.tensor([[9.0, 3.0, 1.0, 2.0, 1.0]]).repeat(4, 1)
    target = torch.tensor([1, 3, 2, 4])
    # column 0 is the highest and never counts; items 2 and 4 tie for places 3 and 4
    assert rank_and_ties(scores, target)[0].tolist() == [1.0, 2.0, 3.5, 3.5]
    row, item = torch.tensor([2, 2, 3, 3]), torch.tensor([1, 1, 2, 4])
    ranks, _ = rank_and_ties(scores, target, exclude_row=row, exclude_item=item)
    # case 2 loses item 1 (given twice, counted once); case 3 its tie; its target stays
    assert ranks.tolist() == [1.0, 2.0, 2.5, 3.0]


def test_infinite_scores_rank_like_any_other() -> None:
    inf = torch.inf
    scores = torch.tensor([[-inf, -inf, 1.0, inf, -inf]])
    for target, expected in [(1, 3.5), (2, 2.0), (3, 1.0)]:
        assert rank_and_ties(scores, torch.tensor([target]))[0].tolist() == [expected]


def test_constant_scorer_ranks_in_the_middle() -> None:
    ranks, ties = rank_and_ties(torch.zeros(3, 102), torch.tensor([1, 50, 101]))
    assert ranks.tolist() == [51.0] * 3
    assert ties.tolist() == [100] * 3


def test_nan_is_an_error_that_names_the_case() -> None:
    scores = torch.zeros(3, 5)
    scores[:, 0] = torch.nan  # the padding column may hold anything
    target = torch.tensor([1, 2, 3])
    assert rank_and_ties(scores, target)[0].tolist() == [2.5] * 3
    scores[1, 4] = torch.nan
    with pytest.raises(EvaluationError, match="item 4 in row 1 is NaN"):
        rank_and_ties(scores, target)
    with pytest.raises(EvaluationError, match="row 1"):
        top_k(scores, 2)


@pytest.mark.parametrize("target", [0, 5, -1])
def test_a_target_outside_the_catalogue_is_an_error(target: int) -> None:
    with pytest.raises(EvaluationError, match=r"wanted an item in 1\.\.4"):
        rank_and_ties(torch.zeros(1, 5), torch.tensor([target]))


def test_misfitting_arguments_are_errors() -> None:
    scores, target = torch.zeros(2, 5), torch.tensor([1, 2])
    pair = torch.tensor([0])
    with pytest.raises(EvaluationError, match="wanted floating point"):
        rank_and_ties(scores.long(), target)
    with pytest.raises(EvaluationError, match="target is"):
        rank_and_ties(scores, target[:1])
    with pytest.raises(EvaluationError, match="must both be given"):
        rank_and_ties(scores, target, exclude_row=pair)
    with pytest.raises(EvaluationError, match="outside the scores"):
        rank_and_ties(scores, target, exclude_row=pair, exclude_item=torch.tensor([5]))
    with pytest.raises(EvaluationError, match="k=0"):
        top_k(scores, 0)


def test_top_k_matches_sorting_the_allowed_items() -> None:
    scores, _, row, item = _case(3)
    scores += torch.rand(scores.shape, generator=torch.Generator().manual_seed(1)).double() / 2
    items, best = top_k(scores, 6, exclude_row=row, exclude_item=item)
    for case in range(len(scores)):
        allowed = [i for i in range(1, 31) if i not in _excluded(row, item, case)]
        expected = sorted(allowed, key=lambda i: -float(scores[case, i]))[:6]
        assert items[case].tolist() == expected
        assert torch.equal(best[case], scores[case, expected])


def test_top_k_fills_up_with_padding() -> None:
    scores = torch.tensor([[5.0, 1.0, 2.0, 3.0]])
    items, best = top_k(scores, 6, exclude_row=torch.tensor([0]), exclude_item=torch.tensor([2]))
    assert items.tolist() == [[3, 1, 0, 0, 0, 0]]
    assert best.tolist() == [[3.0, 1.0] + [-torch.inf] * 4]
