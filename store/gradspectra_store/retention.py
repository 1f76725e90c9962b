"""What is kept for how long: the retention in force, when it comes to a run, and which runs it has come to."""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Any

import sqlalchemy as sa
from gradspectra_core.pyramid import FACTOR

from gradspectra_store.block_schema import compactions
from gradspectra_store.engines import insert_into
from gradspectra_store.retention_schema import retention, retirements
from gradspectra_store.runs import SILENT_SECONDS
from gradspectra_store.schema import cursors, runs, sessions

DAY = 86_400.0
NOTICE_DAYS = 14.0
"""Nothing is retired earlier than this after the retention in force was set: whoever looks sees it before."""

ENDED = ("finished", "failed", "lost")
IN_FORCE = [retention.c[name].label(f"kept_{name}") for name in ("days", "level", "spectra", "since")]
RETIRED = [retirements.c[name].label(f"retired_{name}") for name in ("at", "level", "spectra")]


@dataclass(frozen=True, slots=True)
class Retention:
    """What is left of a run that ended so many `days` ago; days = 0: all is kept for ever.

    level: of the pyramid, the finest left of layer values: buckets of 8^level steps. spectra: so many are left of
    each layer and matrix. since: set at this time, seconds since 1970.
    """

    days: float = 180.0
    level: int = 1
    spectra: int = 100
    since: float = 0.0

    @property
    def width(self) -> int:
        """Steps of the buckets that are left."""
        width: int = FACTOR**self.level
        return width

    def comes_at(self, updated_at: float) -> float | None:
        """Return when it comes to an ended run that was last heard at `updated_at`; None where it is off."""
        return max(updated_at + self.days * DAY, self.since + NOTICE_DAYS * DAY) if self.days else None


def adopt_retention(conn: sa.Connection, wanted: Retention, now: float) -> Retention:
    """Put a retention in force, in the caller's write transaction; one that differs is in force from `now` on."""
    found = retention_in_force(conn)
    if found is not None and replace(found, since=0.0) == replace(wanted, since=0.0):
        return found
    values = dict(zip(("days", "level", "spectra", "since"), astuple(replace(wanted, since=now)), strict=True))
    insert = insert_into(conn, retention).values(id=1, **values)
    conn.execute(insert.on_conflict_do_update(index_elements=["id"], set_=values))
    return replace(wanted, since=now)


def retention_in_force(conn: sa.Connection) -> Retention | None:
    """Return what a server last put in force, None where none ever did: then nothing is retired."""
    row = conn.execute(sa.select(*IN_FORCE)).one_or_none()
    return None if row is None else retention_of(row)


def retention_of(row: Any) -> Retention | None:
    """Return the retention in a row with the columns IN_FORCE."""
    if row.kept_days is None:
        return None
    return Retention(row.kept_days, row.kept_level, row.kept_spectra, row.kept_since)


def retires_at(row: Any, wanted: Retention | None) -> float | None:
    """Return when a run's fine numbers are retired; None where they never are, are already, or the run goes on.

    row: of `runs`, with the columns RETIRED beside it.
    """
    if wanted is None or row.pinned or row.state not in ENDED:
        return None
    done = row.retired_at is not None and row.retired_at >= row.updated_at
    if done and row.retired_level >= wanted.level and row.retired_spectra <= wanted.spectra:
        return None
    return wanted.comes_at(row.updated_at)


def open_to(wanted: Retention) -> list[sa.ColumnElement[bool]]:
    """Say of `runs` with `retirements` outer joined: ended, not pinned, and not retired so far since it was heard."""
    done = retirements.c
    again = sa.or_(
        done.run.is_(None), done.at < runs.c.updated_at, done.level < wanted.level, done.spectra > wanted.spectra
    )
    return [runs.c.state.in_(ENDED), ~runs.c.pinned, again]


def due_runs(conn: sa.Connection, wanted: Retention, now: float, limit: int = 100) -> list[str]:
    """Return runs whose fine numbers are to be retired now, those that ended longest ago first."""
    if not wanted.days or wanted.since + NOTICE_DAYS * DAY > now:
        return []
    query = sa.select(runs.c.id).select_from(runs.outerjoin(retirements, retirements.c.run == runs.c.id))
    query = query.where(*open_to(wanted), *_quiet(wanted, now)).order_by(runs.c.updated_at, runs.c.id)
    return list(conn.execute(query.limit(limit)).scalars())


def take_if_due(conn: sa.Connection, run: str, wanted: Retention, now: float) -> bool:
    """Say whether a run may be retired now, and keep jobs off it until the caller's transaction ends if so."""
    locked = sa.select(runs.c.id).where(runs.c.id == run).with_for_update(key_share=True)
    if conn.execute(locked).one_or_none() is None:
        return False
    ended = runs.c.state.in_(ENDED), ~runs.c.pinned
    return conn.execute(sa.select(runs.c.id).where(runs.c.id == run, *ended, *_quiet(wanted, now))).first() is not None


def note_retired(conn: sa.Connection, run: str, wanted: Retention, now: float) -> None:
    """Note that nothing is left to retire of a run as it is."""
    values = {"at": now, "level": wanted.level, "spectra": wanted.spectra}
    insert = insert_into(conn, retirements).values(run=run, **values)
    conn.execute(insert.on_conflict_do_update(index_elements=["run"], set_=values))


def _quiet(wanted: Retention, now: float) -> list[sa.ColumnElement[bool]]:
    """Last heard long ago, no session alive, all of it derived and compacted."""
    alive = sa.select(sessions.c.id).where(
        sessions.c.run == runs.c.id, sessions.c.ended_at.is_(None), sessions.c.last_seen > now - SILENT_SECONDS
    )
    derived = sa.select(cursors.c.run).where(cursors.c.run == runs.c.id, cursors.c.batch >= runs.c.last_batch)
    compacted = sa.select(sa.func.max(compactions.c.batch)).where(compactions.c.run == runs.c.id).scalar_subquery()
    return [
        runs.c.updated_at <= now - wanted.days * DAY,
        ~alive.exists(),
        derived.exists(),
        sa.func.coalesce(compacted, 0) >= runs.c.last_batch,
    ]
