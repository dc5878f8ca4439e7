"""What every test starts from: one random state, whatever ran before it."""

import pytest
import torch


@pytest.fixture(autouse=True)
def random_state() -> None:
    torch.manual_seed(0)
