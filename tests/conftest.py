"""What every test starts from: one random state, whatever ran before it; and an ensemble's run."""

from collections.abc import Iterator

import pytest
import torch
from synthetic_runs import EMKD, MASKED, recipe_of, write_data

from mmkd.pipeline.train import train
from mmkd.runs.folder import RunFolder


@pytest.fixture(autouse=True)
def random_state() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    assert torch.is_grad_enabled(), "the test left the thread without gradients"


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that point a recipe to the made-up catalogue."""
    return write_data(tmp_path_factory.mktemp("synthetic"))


@pytest.fixture(scope="session")
def full(synthetic: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """KDSR and EMKD together, on a bidirectional backbone."""
    folder = tmp_path_factory.mktemp("runs") / "full"
    train(recipe_of(synthetic, *MASKED, *EMKD), folder=folder)
    return RunFolder(folder)
