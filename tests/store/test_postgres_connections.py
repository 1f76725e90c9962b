"""What goes over a connection to PostgreSQL: few ways there and back, results as bytes, and nothing asked twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import sqlalchemy as sa
from gradspectra_store import Store, postgres_connections
from gradspectra_store.ingest import ingest
from gradspectra_store.postgres_connections import together
from gradspectra_store.prepared import Prepared
from gradspectra_store.read import read_series
from gradspectra_store.schema import run_tags, segments
from store.batches import a_batch, started, stored

pytestmark = pytest.mark.parametrize("url", ["postgresql"], indirect=True)

_insert = Prepared(sa.insert(run_tags).values(run=sa.bindparam("run"), tag=sa.bindparam("tag")).inline())


@contextmanager
def traced(store: Store, file: Path) -> Iterator[list[str]]:
    """What the store's only connection sends and hears in the block: lines that begin with F or B, one a message."""
    said: list[str] = []
    with store.read() as conn:
        pg = conn.connection.driver_connection.pgconn  # type: ignore[union-attr]
    with file.open("w") as out:
        pg.trace(out.fileno())
        pg.set_trace_flags(1)  # without times
        yield said
        pg.untrace()
    said += file.read_text().splitlines()


def ways(said: list[str]) -> int:
    """How often something was sent and then waited for."""
    sides = [line[0] for line in said if line]
    return sum(one == "F" and other == "B" for one, other in pairwise(sides))


def test_a_batch_takes_four_ways_there_and_back(store: Store, tmp_path: Path) -> None:
    run = started(store)
    for sequence in range(1, 9):
        stored(store, run.run, a_batch(run.session, sequence, [sequence]))
    with traced(store, tmp_path / "said") as said:
        stored(store, run.run, a_batch(run.session, 9, [9]))
    assert ways(said) == 4  # it begins, reads where the run stands, writes all, commits
    with store.read() as conn:
        assert read_series(conn, run.run, ["loss"]).x.tolist() == list(range(1, 10))


def test_a_reader_finds_its_statements_prepared_the_next_time(store: Store, tmp_path: Path) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1]))

    def question() -> None:
        with store.read() as conn:
            read_series(conn, run.run, ["loss"])

    for _ in range(8):
        question()
    with traced(store, tmp_path / "said") as said:
        question()
    assert [line for line in said if "Parse" in line or "DEALLOCATE" in line] == []
    assert sum("Execute" in line for line in said) > 3


def test_a_connection_that_was_quiet_for_long_is_asked_whether_it_stands(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(store)
    for sequence in range(1, 9):
        stored(store, run.run, a_batch(run.session, sequence, [sequence]))
    monkeypatch.setattr(postgres_connections, "QUIET_SECONDS", 0.0)
    with traced(store, tmp_path / "said") as said:
        stored(store, run.run, a_batch(run.session, 9, [9]))
    assert ways(said) == 5


def test_payloads_come_as_bytes_and_not_as_text(store: Store) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1]))
    query = sa.select(segments.c.payload, segments.c.first_step, sa.func.length(segments.c.payload))
    with store.read() as conn:
        found = conn.execute(query)
        assert found.cursor is not None
        result = found.cursor.pgresult
        assert [result.fformat(column) for column in range(3)] == [1, 1, 1]
        payload, step, size = found.one()
    assert (type(payload), len(payload), step) == (bytes, size, 1)


def test_an_error_among_statements_sent_together_comes_as_everywhere_and_undoes_all(store: Store) -> None:
    run = started(store)
    tag = {"run": run.run, "tag": "twice"}

    def twice() -> None:
        with store.write() as conn:
            ingest(conn, run.run, a_batch(run.session, 1, [1]), 1001.0)
            with together(conn):
                _insert.run(conn, tag)
                _insert.run(conn, tag)

    with pytest.raises(sa.exc.IntegrityError, match="duplicate key"):
        twice()
    stored(store, run.run, a_batch(run.session, 1, [1]))
    with store.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(run_tags)).scalar_one() == 0
        assert read_series(conn, run.run, ["loss"]).x.tolist() == [1]


def test_connections_of_as_many_threads_as_take_in_batches_stay_open(store: Store) -> None:
    def pids() -> set[int]:
        with ExitStack() as stack:
            conns = [stack.enter_context(store.read()) for _ in range(16)]
            return {int(conn.execute(sa.text("SELECT pg_backend_pid()")).scalar_one()) for conn in conns}

    first = pids()
    assert len(first) == 16
    assert pids() == first
