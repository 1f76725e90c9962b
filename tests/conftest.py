"""What tests of several rooms begin with: an empty database of each kind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from gradspectra_store import Store


settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with all tables and nothing in them, to be copied: to make one takes ten times as long."""
    from gradspectra_store import Store

    file = tmp_path_factory.mktemp("empty") / "gradspectra.db"
    Store.open(f"sqlite:///{file}").close()
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    return file


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL database of the tests' own."""
    from databases import postgres

    with postgres() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, empty_database: Path) -> str:
    """The URL of an empty or emptied database, once of each kind."""
    if request.param == "sqlite":
        shutil.copy(empty_database, tmp_path / "store.db")
        return f"sqlite:///{tmp_path}/store.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """An open store without a run in it."""
    from databases import empty
    from gradspectra_store import Store

    opened = Store.open(url)
    if opened.dialect == "postgresql":
        empty(opened)
    yield opened
    opened.close()
