"""Which runs are derived again, by whom: one process at a time, and one that died stands in nobody's way for long."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from gradspectra_store.block_schema import rederivations
from gradspectra_store.engines import insert_into
from gradspectra_store.errors import StoreError, UnknownRun
from gradspectra_store.identities import new_identity
from gradspectra_store.schema import cursors, runs

HEARD_SECONDS = 60.0
"""A process that was not heard of for so long has died."""

ABANDONED_SECONDS = 3600.0
"""What a process has made that was not heard of for so long is taken away, even where nobody derives the run again."""

WORKING, DONE, TOLD, LEFT = "working", "done", "told", "left"


class CannotDeriveAgain(StoreError):
    """A run that is not derived again; the message says why, and what can be done."""


def begin_again(conn: sa.Connection, run: str, now: float) -> str:
    """Take a run to derive it again; returns the name of who has it then, for `still_mine`.

    now: seconds since 1970. Raises UnknownRun, and CannotDeriveAgain where another process is at it.
    """
    if conn.execute(sa.select(runs.c.id).where(runs.c.id == run).with_for_update(key_share=True)).one_or_none() is None:
        raise UnknownRun(run)
    old = conn.execute(sa.select(rederivations).where(rederivations.c.run == run)).one_or_none()
    if old is not None and old.state == WORKING and now - old.heard_at < HEARD_SECONDS:
        raise CannotDeriveAgain(
            f"run {run} is being derived again by another process, heard of {max(now - old.heard_at, 0):.0f} s ago; "
            f"wait for it, or, if it was killed, until it was silent for {HEARD_SECONDS:.0f} s"
        )
    values = {"owner": new_identity(), "heard_at": now, "state": WORKING}
    insert = insert_into(conn, rederivations).values(run=run, **values)
    conn.execute(insert.on_conflict_do_update(index_elements=["run"], set_=values))
    return str(values["owner"])


def still_mine(conn: sa.Connection, run: str, owner: str, now: float) -> None:
    """Say that the process is alive, in a transaction that goes on with the work, or takes away what it left.

    Nobody else takes the run before the transaction ends. Raises CannotDeriveAgain where somebody has.
    """
    conn.execute(sa.select(runs.c.id).where(runs.c.id == run).with_for_update(read=True, key_share=True))
    query = sa.select(rederivations).where(rederivations.c.run == run).with_for_update()
    row = conn.execute(query).one_or_none()
    if row is None or row.owner != owner:
        raise CannotDeriveAgain(
            f"run {run} was deleted, or another process has begun to derive it again or found this one dead"
        )
    if row.state == WORKING:
        conn.execute(sa.update(rederivations).where(rederivations.c.run == run).values(heard_at=now))


def end_again(conn: sa.Connection, run: str, owner: str, state: str, now: float) -> None:
    """Note how it ended: DONE, or LEFT with nothing changed."""
    mine = rederivations.c.run == run, rederivations.c.owner == owner, rederivations.c.state == WORKING
    conn.execute(sa.update(rederivations).where(*mine).values(state=state, heard_at=now))


def left_runs(conn: sa.Connection, now: float) -> list[str]:
    """Return the runs that were to be derived again and that no process is at, not even to clear up behind itself.

    Those of which nothing was left are not among them; see `forget_again`.
    """
    query = sa.select(rederivations.c.run).where(_left(now))
    return list(conn.execute(query.order_by(rederivations.c.run)).scalars())


def left_alone(conn: sa.Connection, run: str, now: float) -> bool:
    """Say whether a run is still one of `left_runs`, and keep others from it up to the end of the transaction.

    A process that was taken for dead and is not finds that it has lost the run.
    """
    conn.execute(sa.select(runs.c.id).where(runs.c.id == run).with_for_update(read=True, key_share=True))
    own = rederivations.c.run == run
    if conn.execute(sa.select(rederivations.c.run).where(own, _left(now)).with_for_update()).one_or_none() is None:
        return False
    dead = own, rederivations.c.state == WORKING
    conn.execute(sa.update(rederivations).where(*dead).values(owner=new_identity(), state=LEFT))
    return True


def forget_again(conn: sa.Connection, run: str) -> None:
    """Note that nothing is left of deriving a run again, in a transaction that has it by `left_alone`."""
    conn.execute(sa.delete(rederivations).where(rederivations.c.run == run))


def tell_derived_again(conn: sa.Connection) -> list[dict[str, Any]]:
    """Return what live listeners are to be told of runs that were derived again, each once."""
    done = rederivations.c.state == DONE
    query = (
        sa.select(rederivations.c.run, rederivations.c.heard_at, runs.c.last_step, cursors.c.batch)
        .add_columns(cursors.c.derived_step)
        .join(runs, runs.c.id == rederivations.c.run)
        .join(cursors, cursors.c.run == rederivations.c.run)
    )
    rows = conn.execute(query.where(done).order_by(rederivations.c.run)).all()
    if rows:
        conn.execute(sa.update(rederivations).where(done).values(state=TOLD))
    return [
        {"type": "run", "run": row.run, "batch": row.batch, "step": row.last_step, "derived_step": row.derived_step}
        | {"changed_at": row.heard_at}
        for row in rows
    ]


def _left(now: float) -> sa.ColumnElement[bool]:
    over = rederivations.c.state.in_((TOLD, LEFT)), rederivations.c.heard_at < now - HEARD_SECONDS
    dead = rederivations.c.state == WORKING, rederivations.c.heard_at < now - ABANDONED_SECONDS
    return sa.or_(sa.and_(*over), sa.and_(*dead))
