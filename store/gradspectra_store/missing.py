"""Rows that are gone: batches between others, blocks below buckets, and what says that numbers are there at all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.pyramid import Level
from gradspectra_core.records import Int64
from gradspectra_core.statistics import METRICS
from gradspectra_core.widths import width_of

from gradspectra_store.block_rows import Source, find_blocks
from gradspectra_store.block_schema import blocks, extents
from gradspectra_store.damaged import damaged
from gradspectra_store.engines import insert_into
from gradspectra_store.names import add_names
from gradspectra_store.retired import coarse_stretches
from gradspectra_store.rounds import TIMES
from gradspectra_store.schema import cursors, names, runs, segments, sessions
from gradspectra_store.stretches import Stretch, united

_SCOPES = {"scalars": "run", "layers": "layer"}
_OWN = sa.or_(sa.not_(blocks.c.derived), blocks.c.rank == 0)
"""Says of blocks that they are not what a run that is derived again will have, or had."""


def missing_rows(conn: sa.Connection) -> list[str]:
    """Return what is gone, a sentence each: batches of a session, names that blocks have, and extents of blocks."""
    found = [f"run {run} has lost {what}" for run, what in _lost_batches(conn)]
    hidden: dict[str, list[str]] = {}
    for run, _, name, _ in _lost_names(conn):
        hidden.setdefault(run, []).append(name)
    for run, lost in hidden.items():
        found.append(f"run {run} does not know that it has {', '.join(sorted(set(lost)))}")
    unknown = dict.fromkeys(row.run for row in _lost_extents(conn))
    return found + [f"run {run} does not know how far it is compacted" for run in unknown]


def put_back(conn: sa.Connection) -> int:
    """Write again the names and extents that blocks tell of; returns how many."""
    lost = list(_lost_names(conn))
    for run, kind, name, derived in lost:
        add_names(conn, run, _SCOPES[kind], [name], derived=derived)
    reaches = _lost_extents(conn)
    for row in reaches:
        conn.execute(insert_into(conn, extents).values(dict(row._mapping)).on_conflict_do_nothing())
    return len(lost) + len(reaches)


def _lost_batches(conn: sa.Connection) -> Iterator[tuple[str, str]]:
    """Runs, and which derived batches they lack: those of a session go in order, as they are compacted."""
    noted = sa.select(damaged.c.segment).where(sa.not_(damaged.c.derived))
    own = sa.and_(segments.c.session == sessions.c.id, segments.c.kind == "scalars")
    columns = sessions.c.id, sessions.c.run, sessions.c.last_sequence
    first = sa.func.min(segments.c.sequence).filter(segments.c.id.not_in(noted))
    query = sa.select(*columns, first).select_from(sessions.join(segments, own)).group_by(*columns)
    for session, run, last, least in conn.execute(query).all():
        if least is not None:
            yield from ((run, what) for what in _holes(conn, session, least, last))


def _holes(conn: sa.Connection, session: str, first: int, last: int) -> Iterator[str]:
    there = segments.c.session == session, segments.c.kind == "scalars", segments.c.sequence >= first
    if conn.execute(sa.select(sa.func.count()).select_from(segments).where(*there)).scalar_one() == last + 1 - first:
        return
    columns = [segments.c[name] for name in ("attempt", "sequence", "first_step", "last_step")]
    derived = (segments.c.batch <= cursors.c.batch).label("derived")
    query = sa.select(*columns, derived).join(cursors, cursors.c.run == segments.c.run).where(*there)
    rows = conn.execute(query.order_by(segments.c.sequence)).all()
    for one, other in pairwise(rows):
        if other.derived and (lost := other.sequence - one.sequence - 1):
            yield f"{_batches(lost)} of attempt {one.attempt} between steps {one.last_step} and {other.first_step}"


def _batches(count: int) -> str:
    return "a batch" if count == 1 else f"{count} batches"


def _lost_names(conn: sa.Connection) -> list[Any]:
    """Run, kind, name and whether it is derived, of blocks of numbers as recorded whose names the run does not list."""
    columns = blocks.c.run, blocks.c.kind, blocks.c.name, blocks.c.derived
    scope = sa.case((blocks.c.kind == "scalars", "run"), else_="layer")
    listed = sa.exists().where(names.c.run == blocks.c.run, names.c.scope == scope, names.c.name == blocks.c.name)
    query = sa.select(*columns).where(blocks.c.level == 0, blocks.c.name != "", sa.not_(listed), _OWN).distinct()
    return list(conn.execute(query.where(blocks.c.run.in_(sa.select(runs.c.id)))).all())


def _lost_extents(conn: sa.Connection) -> list[Any]:
    """The rows of `extents` that blocks of numbers as recorded should have, and have not."""
    place = [blocks.c[name] for name in Source._fields]
    here = [extents.c[name] == blocks.c[name] for name in Source._fields]
    first, stop = sa.func.min(blocks.c.first), sa.func.max(blocks.c.stop)
    columns = *place, first.label("first_step"), (stop - 1).label("last_step"), stop.label("through")
    query = sa.select(*columns).where(blocks.c.level == 0, _OWN, sa.not_(sa.exists().where(*here)))
    query = query.group_by(*place)
    return list(conn.execute(query.where(blocks.c.run.in_(sa.select(runs.c.id)))).all())


def lost_below(conn: sa.Connection, row: Any, level: Level) -> list[tuple[str, int, int]]:
    """Return names and ranges of steps, first and last, of which there are buckets and no block as recorded.

    row: of the block that holds the buckets. Only those of the finest level that is kept are looked at, and none of a
    metric that is computed on reading. Of scalars the times of the steps must be there too.
    """
    metric = METRICS.get(row.name)
    if row.level != _finest(conn, row) or (metric is not None and metric.function is not None):
        return []
    width, whole = width_of(row.level), Stretch(row.attempt, row.first, row.stop)
    retired = []
    if row.kind == "layers":
        coarse = coarse_stretches(conn, row.run, "layers", [row.name], derived=row.derived)
        retired = [own for one in coarse for own in one.stretches if own.attempt == row.attempt]
    source = Source(*(getattr(row, name) for name in Source._fields))
    timed = row.kind == "scalars" and not row.derived
    found = []
    for name in [row.name, *([TIMES] if timed else [])]:
        there = [one.stretch for one in find_blocks(conn, source, [name], 0, [whole])]
        found += [(name, *steps) for steps in _ranges(level.numbers * width, width, united([*there, *retired]))]
    return found


def _finest(conn: sa.Connection, row: Any) -> int | None:
    place = [blocks.c[name] == getattr(row, name) for name in (*Source._fields, "name")]
    levels = sa.select(blocks.c.level).where(*place, blocks.c.level > 0).order_by(blocks.c.level).limit(1)
    found = conn.execute(levels).one_or_none()
    return None if found is None else int(found.level)


def _ranges(begins: Int64, width: int, there: Iterable[Stretch]) -> Iterator[tuple[int, int]]:
    """First and last steps of buckets, beginning at such steps, that touch none of the stretches, neighbours joined."""
    firsts, stops = np.array([(one.first, one.stop) for one in there], np.int64).reshape(-1, 2).T
    at = np.searchsorted(stops, begins, side="right")
    lost = begins[np.append(firsts, np.iinfo(np.int64).max)[at] >= begins + width]
    for part in np.split(lost, np.flatnonzero(np.diff(lost) > width) + 1):
        if len(part):
            yield int(part[0]), int(part[-1]) + width - 1
