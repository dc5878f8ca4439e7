"""Applications over the hostile shop's runs, asked without a socket."""

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from mmkd import Run
from mmkd.serve import application


def client(*runs: Run, **options: Any) -> TestClient:
    """What asks an application as a program on this machine would."""
    return TestClient(application(runs, **options), base_url="http://localhost")


@pytest.fixture(scope="session")
def shop(hostile_run: Run, hostile_ids_only: Run) -> Iterator[TestClient]:
    """Both runs side by side."""
    with client(hostile_run, hostile_ids_only) as opened:
        yield opened
