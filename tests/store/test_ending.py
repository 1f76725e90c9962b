"""A run that is ended from outside stays so, whatever its job still sends."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.ending import end_run
from gradspectra_store.errors import BadRequest, UnknownRun
from gradspectra_store.runs import heartbeat, mark_lost
from gradspectra_store.schema import sessions
from store.batches import a_batch, started, stored
from store.test_runs_of_store import shown


def test_a_run_is_ended_from_outside_with_all_its_sessions(store: Store) -> None:
    run = started(store, now=1000.0)
    other = started(store, resume=run.run, rank=1, now=1000.0)
    for session in (run.session, other.session):
        stored(store, run.run, a_batch(session, 1, [1]))
    with store.write() as conn:
        assert mark_lost(conn, 5000.0) == [run.run]
        end_run(conn, run.run, "finished", 6000.0)
    assert (shown(store, run.run)["state"], shown(store, run.run)["updated_at"]) == ("finished", 1001.0)
    with store.write() as conn:
        heartbeat(conn, run.run, run.session, None, 7000.0)
        ends = conn.execute(sa.select(sessions.c.ended_at).where(sessions.c.run == run.run)).scalars().all()
    assert ends == [6000.0, 6000.0]
    assert shown(store, run.run)["state"] == "finished"
    with store.write() as conn, pytest.raises(BadRequest, match="state: must be finished or failed, got 'lost'"):
        end_run(conn, run.run, "lost", 8000.0)
    with store.write() as conn, pytest.raises(UnknownRun):
        end_run(conn, "nowhere", "failed", 8000.0)
