"""Segments that are gone: those that the scalars of their batch tell of, and a session's newest batches."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from gradspectra_store.block_schema import extents
from gradspectra_store.retention_schema import retired
from gradspectra_store.schema import cursors, runs, segments, sessions
from gradspectra_store.segments import told_beside


def lost_newest(conn: sa.Connection) -> list[str]:
    """Return, a sentence each, which sessions lack their newest batches, as far as these are taken for derived.

    What is left of a session in segments are its newest batches, since they are compacted in order. Where nothing is
    left, what is compacted of its attempt and rank must reach its last step.
    """
    own = sa.and_(segments.c.session == sessions.c.id, segments.c.kind == "scalars")
    columns = [sessions.c[name] for name in ("id", "run", "attempt", "rank", "last_sequence", "last_step")]
    there = sa.select(*columns, sa.func.max(segments.c.sequence).label("there"), sa.func.max(segments.c.last_step))
    joined = there.select_from(sessions.outerjoin(segments, own)).where(sessions.c.last_sequence > 0)
    found = []
    for row in conn.execute(joined.group_by(*columns).order_by(sessions.c.run, sessions.c.id)).all():
        reach = row[-1] if row.there is not None else _compacted_to(conn, row, "scalars")
        lost = reach is None or reach < row.last_step if row.there is None else row.there < row.last_sequence
        if lost and not _has_more_to_derive(conn, row.run):
            after = "all that it had" if reach is None else f"what came after step {reach}"
            found.append(f"run {row.run} has lost {after} of a session of attempt {row.attempt}, rank {row.rank}")
    return found


def lost_beside(conn: sa.Connection, row: Any) -> list[str]:
    """Return the kinds of segments that the batch of a segment of scalars had, and which are gone but not compacted.

    row: of a segment of scalars that can be read back.
    """
    told = told_beside(row.payload)
    if not told:
        return []
    of_batch = segments.c.run == row.run, segments.c.batch == row.batch
    there = set(conn.execute(sa.select(segments.c.kind).where(*of_batch)).scalars())
    return [kind for kind in told if kind not in there and not _may_have_gone(conn, row, kind)]


def _may_have_gone(conn: sa.Connection, row: Any, kind: str) -> bool:
    """Whether a segment of a batch may have been compacted, or its spectra retired."""
    if kind == "spectra":
        of_source = [retired.c[name] == getattr(row, name) for name in ("run", "attempt", "rank")]
        return bool(conn.execute(sa.select(sa.exists().where(retired.c.kind == kind, *of_source))).scalar_one())
    reach = _compacted_to(conn, row, kind)
    return reach is not None and reach >= row.first_step


def _compacted_to(conn: sa.Connection, row: Any, kind: str) -> int | None:
    """The last step that is compacted of an attempt's and rank's numbers as recorded, None where nothing is."""
    place = {"run": row.run, "kind": kind, "derived": False, "attempt": row.attempt, "rank": row.rank}
    query = sa.select(extents.c.last_step).where(*(extents.c[name] == value for name, value in place.items()))
    return conn.execute(query).scalar_one_or_none()


def _has_more_to_derive(conn: sa.Connection, run: str) -> bool:
    """Whether batches are there, or missed, that are not derived: what is wrong with these is told by their number."""
    query = sa.select(sa.exists().where(runs.c.id == run, cursors.c.run == run, cursors.c.batch < runs.c.last_batch))
    return bool(conn.execute(query).scalar_one())
