"""What the tests of the worker share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from worker.redis_server import RedisServer, redis_running


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of at most 64 entries, so that short runs have several."""
    monkeypatch.setattr("gradspectra_store.block_rows.MOST_ENTRIES", 64)


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running Redis of the test's own."""
    with redis_running(tmp_path_factory.mktemp("redis")) as server:
        yield server
