"""The loss against one written out in float64, same contents and all."""

import numpy as np
import pytest
import torch
from references.tuning import reference_pair_loss, reference_towers_loss

from mmkd.tuning import pair_loss
from mmkd.tuning.loss import towers_loss


def test_loss_is_the_written_out_one() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 7, 5))
    contents = np.array([[1, 2, 3, 4, 1, 5, 6], [2, 3, 8, 9, 7, 5, 1]])  # repeats, and own items
    found = pair_loss(
        *(torch.from_numpy(one).float() for one in (first, second)),
        *(torch.from_numpy(one) for one in contents),
        temperature=0.3,
    )
    expected = reference_pair_loss(
        first.tolist(), second.tolist(), contents[0].tolist(), contents[1].tolist(), temperature=0.3
    )
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_an_item_s_own_content_is_no_negative() -> None:
    """Where all other items repeat the pair's, nothing is left to tell it from."""
    vectors = torch.randn(2, 4, 3)
    contents = torch.tensor([[1, 1, 2, 2], [2, 2, 1, 1]])
    assert float(pair_loss(*vectors, *contents)) == 0.0


def test_a_constant_encoder_has_the_loss_of_guessing() -> None:
    same = torch.ones(8, 3)
    contents = torch.arange(16).view(2, 8)
    assert float(pair_loss(same, same, *contents)) == pytest.approx(np.log(8))


@pytest.mark.parametrize("towers", [1, 2])
def test_towers_have_the_written_out_loss_within_and_across(towers: int) -> None:
    rng = np.random.default_rng(1)
    # of 8 items, 0 for none: 3 and 6 have no picture, 7 no text; 0 and 5 have one text
    contents = np.array([[1, 2, 3, 4, 5, 1, 6, 0], [1, 2, 2, 0, 3, 4, 0, 5]])[:towers]
    pairs = [(0, 1), (2, 3), (4, 0), (6, 5), (3, 6), (1, 2), (5, 4), (7, 1), (6, 7)]
    if towers == 1:
        pairs = [pair for pair in pairs if 7 not in pair]
    drawn = rng.normal(size=(towers, 8, 5))
    vectors, places = [], []
    for own, there in zip(drawn, contents > 0, strict=True):
        vectors.append(torch.from_numpy(own[there]).float())
        places.append(torch.from_numpy(np.cumsum(there) - 1)[torch.tensor(pairs)])
    found = towers_loss(
        vectors,
        places,
        [torch.from_numpy(one)[torch.tensor(pairs)] for one in contents],
        temperature=0.3,
    )
    given = [
        [row.tolist() if there else None for row, there in zip(own, here > 0, strict=True)]
        for own, here in zip(drawn, contents, strict=True)
    ]
    expected = reference_towers_loss(given, contents.tolist(), pairs, temperature=0.3)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_a_term_without_a_pair_counts_for_nothing() -> None:
    """Where nothing has a picture, two towers have the loss of the one."""
    vectors = torch.randn(6, 3)
    places = torch.arange(6).view(3, 2)
    texts, nothing = 1 + places, torch.zeros(3, 2, dtype=torch.int64)
    both = towers_loss([vectors, torch.zeros(0, 3)], [places, nothing], [texts, nothing])
    assert float(both) == float(towers_loss([vectors], [places], [texts]))
