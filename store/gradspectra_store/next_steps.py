"""Where a run goes on after a range of steps without numbers: steps may lie as far apart as 2^53."""

from __future__ import annotations

import sqlalchemy as sa
from gradspectra_core.buckets import level_of
from gradspectra_core.records import Int64

from gradspectra_store.block_schema import blocks
from gradspectra_store.errors import StoreDamaged
from gradspectra_store.schema import derived_segments, segments
from gradspectra_store.segments import READERS, opened


def next_step(conn: sa.Connection, run: str, kind: str, attempt: int, after: int, width: int = 1) -> int | None:
    """Return the first step from `after` on at which an attempt may have numbers of a kind, None where there is none.

    kind: of segments, those of rank 0. Where blocks reach over `after` it is that step itself, whatever they have
    there; segments that cannot be read back have none. width: steps of the widest buckets that are left alone.
    """
    place = {"run": run, "kind": kind, "attempt": attempt, "rank": 0}
    found: list[int | None] = []
    for table in (segments, derived_segments):
        own = [table.c[name] == value for name, value in place.items() if name in table.c]
        later = sa.select(sa.func.min(table.c.first_step)).where(*own, table.c.first_step >= after)
        found.append(conn.execute(later).scalar_one())
        across = table.c.first_step < after, table.c.last_step >= after
        rows = conn.execute(sa.select(table.c.payload, table.c.checksum).where(*own, *across))
        found += [_within(kind, row, after) for row in rows]
    in_blocks = [blocks.c[name] == value for name, value in place.items()]
    in_blocks += [blocks.c.level <= level_of(width), blocks.c.stop > after]  # wider ones reach over what is not there
    first = conn.execute(sa.select(sa.func.min(blocks.c.first)).where(*in_blocks)).scalar_one()
    found.append(None if first is None else max(first, after))
    return min((step for step in found if step is not None), default=None)


def _within(kind: str, row: sa.Row, after: int) -> int | None:  # type: ignore[type-arg]
    """The first step of a segment from `after` on."""
    try:
        part = opened(READERS[kind], row.payload, row.checksum)
    except StoreDamaged:
        return None
    steps: Int64 = part.step if kind == "spectra" else part.steps
    return int(steps[steps >= after].min()) if (steps >= after).any() else None
