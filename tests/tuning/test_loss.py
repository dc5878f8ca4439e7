"""The loss against one written out in float64, same contents and all."""

import numpy as np
import pytest
import torch
from references.tuning import reference_pair_loss

from mmkd.tuning import pair_loss


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
