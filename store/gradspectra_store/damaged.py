"""Segments that were found damaged: kept as they are, for whoever looks into it, and looked past by compaction."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import sqlalchemy as sa

from gradspectra_store.engines import insert_into
from gradspectra_store.schema import LONG, metadata, run_column
from gradspectra_store.stretches import Stretch

damaged = sa.Table(
    "damaged",
    metadata,
    run_column(primary_key=True),
    sa.Column("derived", sa.Boolean, primary_key=True),
    sa.Column("segment", LONG, primary_key=True, autoincrement=False, comment="its id"),
    sa.Column("kind", sa.String(8), nullable=False, comment="scalars, layers or spectra"),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("first_step", LONG, nullable=False),
    sa.Column("last_step", LONG, nullable=False),
)


@dataclass(frozen=True, slots=True)
class DamagedSegment:
    """A segment that cannot be read back: its id, in which of the two tables it is, and where its numbers belong."""

    run: str
    derived: bool
    segment: int
    kind: str
    attempt: int
    rank: int
    first_step: int
    last_step: int


def note_damaged(conn: sa.Connection, found: Iterable[DamagedSegment]) -> None:
    """Note segments that cannot be read back; those that are noted already stay as they are."""
    for one in found:
        conn.execute(insert_into(conn, damaged).values(asdict(one)).on_conflict_do_nothing())


def noted_segments(run: str, *, derived: bool) -> sa.Select[tuple[int]]:
    """Return the query for the ids of the segments of a run that were found damaged."""
    of_run = damaged.c.run == run, damaged.c.derived == derived
    return sa.select(damaged.c.segment).where(*of_run)


def damaged_stretches(conn: sa.Connection, run: str, kind: str, *, derived: bool) -> list[Stretch]:
    """Return the steps of rank 0's segments of a kind that were found damaged."""
    place = {"run": run, "kind": kind, "derived": derived, "rank": 0}
    steps = damaged.c.attempt, damaged.c.first_step, damaged.c.last_step + 1
    rows = conn.execute(sa.select(*steps).where(*(damaged.c[name] == value for name, value in place.items())))
    return [Stretch(*row) for row in rows]
