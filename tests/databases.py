"""A PostgreSQL database of the tests' own, and how a database is emptied."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.block_schema import metadata

PLACES = ("postgresql+psycopg://root@/test?host=/var/run/postgresql", "postgresql+psycopg://root@127.0.0.1:5432/test")


@contextmanager
def postgres() -> Iterator[str]:
    """A fresh database of a running PostgreSQL, dropped at the end. Yields its URL; skips the test where none runs."""
    places = [os.environ["GRADSPECTRA_TEST_POSTGRES"]] if "GRADSPECTRA_TEST_POSTGRES" in os.environ else PLACES
    name = f"gradspectra_test_{secrets.token_hex(4)}"
    for place in places:
        server = sa.create_engine(place, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3})
        try:
            with server.connect() as conn:
                conn.execute(sa.text(f"CREATE DATABASE {name}"))
        except sa.exc.OperationalError:
            server.dispose()
            continue
        try:
            yield sa.make_url(place).set(database=name).render_as_string(hide_password=False)
        finally:
            with server.connect() as conn:
                conn.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
            server.dispose()
        return
    pytest.skip("no PostgreSQL answers; set GRADSPECTRA_TEST_POSTGRES to the URL of one")


def empty(store: Store) -> None:
    """Take every row out of a PostgreSQL database; of few rows this is quicker than TRUNCATE."""
    with store.write() as conn:
        for table in reversed(metadata.sorted_tables):
            conn.execute(table.delete())
