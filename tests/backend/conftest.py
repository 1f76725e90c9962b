"""The service as a caller meets it: through HTTP, on both databases."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from backend.callers import Caller
from databases import empty
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.settings import Settings, load_settings
from gradspectra_store import Store


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("GRADSPECTRA_") and not name.startswith("GRADSPECTRA_TEST_"):
            monkeypatch.delenv(name)


@pytest.fixture
def settings(tmp_path: Path, empty_database: Path) -> Settings:
    """An embedded server on SQLite, on a loopback address."""
    shutil.copy(empty_database, tmp_path / "gradspectra.db")
    return load_settings(data=tmp_path)


@pytest.fixture
def caller(settings: Settings) -> Iterator[Caller]:
    """A training job and a reader in one, at an embedded server on SQLite."""
    with TestClient(create_app(settings), base_url="http://127.0.0.1:7117", raise_server_exceptions=False) as client:
        yield Caller(client)


@pytest.fixture(scope="module")
def shared_caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    """The same for all tests of a module, where each reads what is there or makes runs of its own."""
    app = create_app(load_settings(data=tmp_path_factory.mktemp("data")))
    with TestClient(app, base_url="http://127.0.0.1:7117", raise_server_exceptions=False) as client:
        yield Caller(client)


@pytest.fixture(params=["sqlite", "postgresql"])
def anywhere(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Caller]:
    """The same at a server on each database."""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        settings = settings.model_copy(update={"database_url": url})
        store = Store.open(url)
        empty(store)  # before the server starts, whose first sweep would be in the way
        store.close()
    app = create_app(settings)
    with TestClient(app, base_url="http://127.0.0.1:7117", raise_server_exceptions=False) as client:
        yield Caller(client)
