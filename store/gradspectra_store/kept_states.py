"""States of the detectors, kept for attempts that resume, and those that a run derived again will have, or had.

The ones lie under the numbers of their attempts, the others under the same numbers below zero. Which are which the
watermark of the run says: they are exchanged by a single bit, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from gradspectra_store.engines import insert_into
from gradspectra_store.schema import attempts, cursors, derive_states

_KEY = derive_states.c.attempt, derive_states.c.step
_of_key = sa.tuple_(*_KEY)

Key = tuple[int, int]
"""Attempt and step."""


def checkpoint_state(conn: sa.Connection, run: str, attempt: int, step: int, state: dict[str, Any]) -> None:
    """Keep the detectors' state after `step` of an attempt, for attempts that start later; replaces one there."""
    key = {"run": run, "attempt": _sign(conn, run) * attempt, "step": step}
    conn.execute(sa.delete(derive_states).where(*(derive_states.c[name] == value for name, value in key.items())))
    conn.execute(sa.insert(derive_states).values(**key, state=state))


def state_before(conn: sa.Connection, run: str, step: int, attempt: int | None = None) -> dict[str, Any] | None:
    """Return the newest state kept of a step below `step` on the trajectory that an attempt continues.

    attempt: the one that starts at `step`, None for the newest. States of older attempts count only up to where
    the attempts between hid them.
    """
    own = sa.select(attempts.c.number, attempts.c.first_step).where(attempts.c.run == run)
    rows = conn.execute(own.order_by(attempts.c.number.desc())).all()
    best: sa.Row[Any] | None = None
    stop = step
    newest = attempt if attempt is not None else (rows[0].number if rows else 0)
    sign = _sign(conn, run)
    for number, first in rows:
        if number > newest:
            continue
        if number < newest:
            of_attempt = derive_states.c.run == run, derive_states.c.attempt == sign * number
            query = sa.select(derive_states).where(*of_attempt, derive_states.c.step < stop)
            row = conn.execute(query.order_by(derive_states.c.step.desc()).limit(1)).one_or_none()
            if row is not None and (best is None or row.step > best.step):
                best = row
        stop = min(stop, first)
    return None if best is None else best.state


def state_keys(conn: sa.Connection, run: str) -> list[Key]:
    """Return the attempt and step of each state that is kept of a run, in order."""
    query = sa.select(sa.func.abs(derive_states.c.attempt), derive_states.c.step).where(
        derive_states.c.run == run, _own(conn, run)
    )
    return sorted((attempt, step) for attempt, step in conn.execute(query))


def state_texts(conn: sa.Connection, run: str, keys: Sequence[Key]) -> list[tuple[int, int, str]]:
    """Return attempt, step and state, as the text that it is, of some of the states that are kept of a run."""
    sign = _sign(conn, run)
    stored = [(sign * attempt, step) for attempt, step in keys]
    text = sa.type_coerce(derive_states.c.state, sa.Text)
    query = sa.select(*_KEY, text).where(derive_states.c.run == run, _of_key.in_(stored))
    return [(abs(attempt), step, state) for attempt, step, state in conn.execute(query)]


def put_beside(conn: sa.Connection, run: str, states: Sequence[tuple[int, int, str]]) -> None:
    """Lay states, as `state_texts` gives them, beside those of the run, in place of those that lie there."""
    sign = _sign(conn, run)
    insert = insert_into(conn, derive_states).values(state=sa.bindparam("state", type_=sa.Text))
    replace = insert.on_conflict_do_update(
        index_elements=["run", "attempt", "step"], set_={"state": insert.excluded.state}
    )
    rows = [{"run": run, "attempt": -sign * attempt, "step": step, "state": state} for attempt, step, state in states]
    conn.execute(replace, rows)


def keys_beside(conn: sa.Connection, run: str, most: int) -> list[Key]:
    """Return up to so many keys, as they are stored, of states that lie beside those of a run."""
    query = sa.select(*_KEY).where(derive_states.c.run == run, sa.not_(_own(conn, run))).limit(most)
    return [(attempt, step) for attempt, step in conn.execute(query)]


def delete_states(conn: sa.Connection, run: str, keys: Sequence[Key]) -> None:
    """Delete states by their keys as they are stored."""
    conn.execute(sa.delete(derive_states).where(derive_states.c.run == run, _of_key.in_(keys)))


def _sign(conn: sa.Connection, run: str) -> int:
    query = sa.select(cursors.c.states_turned).where(cursors.c.run == run)
    return -1 if conn.execute(query).scalar_one_or_none() else 1


def _own(conn: sa.Connection, run: str) -> sa.ColumnElement[bool]:
    return derive_states.c.attempt > 0 if _sign(conn, run) > 0 else derive_states.c.attempt < 0
