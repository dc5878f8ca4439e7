"""A hub on the loopback, and runs to ship: one a backbone, and an ensemble."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from shipping.hub_server import Hub, serving
from synthetic_runs import recipe_of

import mmkd
from mmkd.hub import hub_reachable


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, asked instead of the hub, with a token that may write and an empty cache."""
    with serving() as found:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, found.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN", "writer")
        hub_reachable.cache_clear()
        yield found
    hub_reachable.cache_clear()


@pytest.fixture(scope="session")
def kdsr(synthetic: list[str], tmp_path_factory: pytest.TempPathFactory) -> mmkd.Run:
    """One network on ids, texts and pictures."""
    return mmkd.train(recipe_of(synthetic), folder=tmp_path_factory.mktemp("runs") / "kdsr")
