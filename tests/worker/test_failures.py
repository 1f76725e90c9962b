"""What the log tells of a database that is full, and a process that is told to end while it speaks to the database."""

from __future__ import annotations

import logging
import os
from typing import Any

import psycopg
import pytest
from gradspectra_store import Store
from gradspectra_store.errors import StoreFull
from gradspectra_worker import dispatch, tasks
from gradspectra_worker.dispatch import InlineDispatcher
from worker.synthetic import batches, numbers, start, take_in
from worker.test_dispatch import derived_step, wait_until

NO_SPACE = "the disk of the database is full (database or disk is full)"


def test_the_embedded_server_tells_a_full_disk_in_lines_and_goes_on_when_there_is_space(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = {"checkpoint": 2, "derive": 2}

    def failing(name: str, real: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            full[name] -= 1
            if full[name] >= 0:
                raise StoreFull(NO_SPACE)
            return real(*args, **options)

        return run

    monkeypatch.setattr(store, "checkpoint", failing("checkpoint", store.checkpoint))
    monkeypatch.setattr(dispatch, "derive", failing("derive", dispatch.derive))
    monkeypatch.setattr(dispatch, "FAILED_REST_SECONDS", 0.0)
    started = start(store)
    take_in(store, started, batches(numbers(16), started.session))
    dispatcher = InlineDispatcher(store, sweep_seconds=0.05)
    with caplog.at_level(logging.ERROR):
        dispatcher.start()
        wait_until(lambda: derived_step(store, started.run) == 16)
        dispatcher.stop()
    told = [record.getMessage() for record in caplog.records]
    assert told.count(f"deriving run {started.run} failed; it is tried again: {NO_SPACE}") == 2
    assert all(line.endswith(NO_SPACE) for line in told)
    assert [record.exc_info for record in caplog.records] == [None] * len(told)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.usefixtures("store")
def test_a_process_that_is_told_to_end_while_it_looks_at_a_connection_ends(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADSPECTRA_DATABASE_URL", url)
    tasks._store.cache_clear()
    waits = psycopg.Connection.wait
    told = []

    def wait(connection: Any, generator: Any, *args: Any) -> Any:
        """The signal comes when the first query is sent, before its answer."""
        if told:
            return waits(connection, generator, *args)
        try:
            told.append(next(generator))
        except StopIteration as done:
            return done.value
        raise SystemExit(-241)

    try:
        tasks.deliver_alerts()  # from now on there is a connection, which is looked at before it is used
        with monkeypatch.context() as patched:
            patched.setattr(psycopg.Connection, "wait", wait)
            with pytest.raises(SystemExit) as ended:
                tasks.deliver_alerts()
        assert ended.value.code == -241
        tasks.deliver_alerts()
    finally:
        tasks._store(os.getpid()).close()
        tasks._store.cache_clear()
