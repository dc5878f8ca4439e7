"""The runs that are reported on."""

import pytest

from mmkd import Run


@pytest.fixture(scope="session")
def run(hostile_run: Run) -> Run:
    return hostile_run


@pytest.fixture(scope="session")
def ids_only(hostile_ids_only: Run) -> Run:
    return hostile_ids_only
