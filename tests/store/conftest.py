"""A store on each database: SQLite in a temporary folder, PostgreSQL in a database of its own where one runs."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.block_schema import metadata

_PLACES = ("postgresql+psycopg://root@/test?host=/var/run/postgresql", "postgresql+psycopg://root@127.0.0.1:5432/test")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A fresh, empty database; dropped at the end."""
    places = [os.environ["GRADSPECTRA_TEST_POSTGRES"]] if "GRADSPECTRA_TEST_POSTGRES" in os.environ else _PLACES
    name = f"gradspectra_test_{secrets.token_hex(4)}"
    for place in places:
        server = sa.create_engine(place, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3})
        try:
            with server.connect() as conn:
                conn.execute(sa.text(f"CREATE DATABASE {name}"))
        except sa.exc.OperationalError:
            server.dispose()
            continue
        yield sa.make_url(place).set(database=name).render_as_string(hide_password=False)
        with server.connect() as conn:
            conn.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
        server.dispose()
        return
    pytest.skip("no PostgreSQL answers; set GRADSPECTRA_TEST_POSTGRES to the URL of one")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path, empty_database: Path) -> str:
    """The URL of an empty or emptied database, once of each kind."""
    if request.param == "sqlite":
        shutil.copy(empty_database, tmp_path / "store.db")
        return f"sqlite:///{tmp_path}/store.db"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """An open store without a run in it."""
    opened = Store.open(url)
    if opened.dialect == "postgresql":
        with opened.write() as conn:
            for table in reversed(metadata.sorted_tables):  # deleting few rows is quicker than TRUNCATE
                conn.execute(table.delete())
    yield opened
    opened.close()
