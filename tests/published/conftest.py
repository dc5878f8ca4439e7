"""A server on the loopback, for tests of downloads."""

import threading
from collections.abc import Iterator

import pytest
from published_files import Site


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()
    thread = threading.Thread(target=found.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
