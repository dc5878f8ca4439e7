"""What every test starts from: one random state, whatever ran before it; and shared runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import ID_ONLY
from hostile_runs import hostile_shop, trained
from synthetic_runs import EMKD, MASKED, recipe_of, write_data

from mmkd import Run
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


@pytest.fixture(scope="session")
def shop_of_strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the hostile shop in data/."""
    folder = tmp_path_factory.mktemp("hostile")
    hostile_shop(folder / "data")
    return folder


@pytest.fixture(scope="session")
def hostile_run(shop_of_strangers: Path) -> Run:
    """A run of the hostile shop on ids, texts and pictures."""
    return trained(shop_of_strangers, "<b>kdsr<")


@pytest.fixture(scope="session")
def hostile_ids_only(shop_of_strangers: Path) -> Run:
    """A run of the hostile shop on ids."""
    return trained(shop_of_strangers, "ids", *ID_ONLY)
