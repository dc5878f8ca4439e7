"""Fixtures of the cache's tests."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmkd import EmbeddingCache


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache", shard_size=16)


@pytest.fixture
def readable_folder() -> Iterator[Path]:
    """A folder that an unprivileged user may read: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
