"""What tests of several rooms begin with."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite file with all tables and nothing in them, to be copied: to make one takes ten times as long."""
    from gradspectra_store import Store

    file = tmp_path_factory.mktemp("empty") / "gradspectra.db"
    Store.open(f"sqlite:///{file}").close()
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    return file
