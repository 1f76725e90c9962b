"""Ending a run from outside, where its job cannot say any more how it went."""

from __future__ import annotations

import sqlalchemy as sa
from gradspectra_core.limits import shown

from gradspectra_store.errors import BadRequest
from gradspectra_store.runs import lock_run
from gradspectra_store.schema import runs, sessions

ENDS = ("finished", "failed")


def end_run(conn: sa.Connection, run: str, state: str | None, now: float) -> None:
    """Give a run the state it ended in, whatever it was in; none of its sessions counts as live from then on.

    A job that lives after all can go on sending, and what it sends is kept; when it was last heard stays as it is. now:
    seconds since 1970. Raises UnknownRun, and BadRequest for a state that is no end.
    """
    if state not in ENDS:
        raise BadRequest("state", f"must be {' or '.join(ENDS)}, got {shown(state)}")
    lock_run(conn, run)
    live = sessions.c.run == run, sessions.c.ended_at.is_(None)
    conn.execute(sa.update(sessions).where(*live).values(ended_at=now))
    conn.execute(sa.update(runs).where(runs.c.id == run).values(state=state))
