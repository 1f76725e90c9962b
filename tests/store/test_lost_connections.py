"""A PostgreSQL that restarts, or drops a connection in the middle: it is said, undone, and forgotten."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.errors import StoreUnavailable
from gradspectra_store.ingest import ingest
from gradspectra_store.read import read_series
from gradspectra_store.run_views import get_run
from store.batches import a_batch, started, stored

pytestmark = pytest.mark.parametrize("url", ["postgresql"], indirect=True)


def cut(store: Store, pid: int | None = None) -> None:
    """End one connection of the database, or all others, as a server that restarts does."""
    engine = sa.create_engine(sa.make_url(store.url))
    of_database = "datname = current_database() AND pid <> pg_backend_pid()"
    chosen = of_database if pid is None else f"pid = {pid}"
    with engine.connect() as conn:
        conn.execute(sa.text(f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE {chosen}")).all()
    engine.dispose()


def pid_of(conn: sa.Connection) -> int:
    return int(conn.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())


def steps(store: Store, run: str) -> list[int]:
    with store.read() as conn:
        return read_series(conn, run, ["loss"]).x.tolist()


@pytest.mark.parametrize("when", ["before a batch", "before the commit", "before a plain statement"])
def test_a_transaction_that_loses_its_connection_is_undone_and_the_next_goes_on(store: Store, when: str) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1]))

    def losing() -> None:
        with store.write() as conn:
            pid = pid_of(conn)
            if when == "before a batch":
                cut(store, pid)
            ingest(conn, run.run, a_batch(run.session, 2, [2]), 1002.0)
            cut(store, pid)
            if when == "before a plain statement":
                get_run(conn, run.run)

    with pytest.raises(StoreUnavailable, match="is not available"):
        losing()
    assert steps(store, run.run) == [1]
    stored(store, run.run, a_batch(run.session, 2, [2]))
    assert steps(store, run.run) == [1, 2]


def test_a_reader_that_loses_its_connection_says_so_and_the_next_is_answered(store: Store) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1]))

    def losing() -> None:
        with store.read() as conn:
            cut(store, pid_of(conn))
            read_series(conn, run.run, ["loss"])

    with pytest.raises(StoreUnavailable, match="is not available"):
        losing()
    assert steps(store, run.run) == [1]


def test_a_server_that_restarts_between_two_calls_is_not_noticed(store: Store) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1]))
    with store.read() as one, store.read() as other:  # several connections that are kept
        assert pid_of(one) != pid_of(other)
    cut(store)
    assert steps(store, run.run) == [1]
    stored(store, run.run, a_batch(run.session, 2, [2]))
    assert steps(store, run.run) == [1, 2]
