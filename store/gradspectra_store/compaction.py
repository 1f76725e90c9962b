"""Which segments can become blocks, and the transaction that puts blocks in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from gradspectra_store.block_rows import Source
from gradspectra_store.block_schema import blocks, compactions, extents
from gradspectra_store.damaged import DamagedSegment, note_damaged, noted_segments
from gradspectra_store.engines import insert_into
from gradspectra_store.schema import cursors, derived_segments, runs, segments

UNIT = 64
"""The newest steps of an attempt stay in segments up to a multiple of so many."""

KEPT = 64
"""So many more steps of derived numbers stay: those that rest on spectra come after the others."""

CHUNK_BYTES = 4 << 20
_MOST_SEGMENTS = 2048
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Loose:
    """A segment that can be compacted."""

    id: int
    attempt: int
    rank: int
    first_step: int
    last_step: int
    digest: str | None
    size: int


@dataclass(frozen=True, slots=True)
class NewBlock:
    """A block to write, all but its source."""

    name: str
    level: int
    first: int
    stop: int
    entries: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Extent:
    """What of a source is compacted: first and last step of its segments, and below which step its pyramid is whole."""

    first_step: int
    last_step: int
    through: int


@dataclass(frozen=True, slots=True)
class Round:
    """One transaction of compaction: these segments and blocks go, these blocks come.

    rounds: how many were before. extent: None where nothing was made into blocks. damaged: segments that cannot be read
    back and stay as they are.
    """

    source: Source
    rounds: int
    segments: tuple[int, ...]
    replaced: tuple[int, ...]
    blocks: tuple[NewBlock, ...]
    extent: Extent | None
    damaged: tuple[DamagedSegment, ...] = ()


def compactable_runs(conn: sa.Connection) -> list[str]:
    """Return the runs that were derived further since nothing was left to compact of them."""
    joined = cursors.outerjoin(compactions, compactions.c.run == cursors.c.run)
    query = sa.select(cursors.c.run).select_from(joined)
    done = sa.func.coalesce(compactions.c.batch, 0)
    return list(conn.execute(query.where(cursors.c.batch > done).order_by(cursors.c.run)).scalars())


def rounds_of(conn: sa.Connection, run: str) -> int:
    """Return how many rounds of compaction a run has had."""
    query = sa.select(compactions.c.rounds).where(compactions.c.run == run)
    return conn.execute(query).scalar_one_or_none() or 0


def loose_segments(conn: sa.Connection, run: str) -> tuple[Source, list[Loose]] | None:
    """Return segments of one source that can be compacted now, in order of batches, at least one and about 4 MiB at
    most; None where there are none.

    They are derived, lie below the newest steps of the run's present attempt, and were not found damaged.
    """
    cursor = conn.execute(sa.select(cursors).where(cursors.c.run == run)).one_or_none()
    if cursor is None:
        return None
    for kind in ("scalars", "layers"):
        for derived in (False, True):
            rows = conn.execute(_can_go(conn, cursor, kind, derived)).all()
            if rows:
                source = Source(run, kind, derived, rows[0].attempt, rows[0].rank)
                own = [Loose(*row) for row in rows if (row.attempt, row.rank) == (source.attempt, source.rank)]
                return source, _chunk(own)
    return None


def _can_go(conn: sa.Connection, cursor: Any, kind: str, derived: bool) -> sa.Select[Any]:
    """Older attempts' segments, and those of the present one before the first batch that reaches the newest steps."""
    table = derived_segments if derived else segments
    rank = sa.literal(0).label("rank") if derived else segments.c.rank
    kept = (cursor.derived_step + 1 - (KEPT if derived else 0)) // UNIT * UNIT
    columns = [table.c.id, table.c.attempt, rank, table.c.first_step, table.c.last_step, table.c.digest]
    of_run = table.c.run == cursor.run, table.c.kind == kind, table.c.batch <= cursor.batch
    newest = sa.select(sa.func.min(table.c.batch)).where(
        *of_run, table.c.attempt == cursor.attempt, table.c.last_step >= kept
    )
    before = conn.execute(newest).scalar_one()
    older = table.c.attempt < cursor.attempt
    sound = table.c.id.not_in(noted_segments(cursor.run, derived=derived))
    query = sa.select(*columns, sa.func.length(table.c.payload).label("size")).where(*of_run, sound)
    if before is not None:
        query = query.where(sa.or_(older, table.c.batch < before))
    order = (table.c.part,) if derived else ()
    return query.order_by(table.c.batch, *order).limit(_MOST_SEGMENTS)


def _chunk(own: Sequence[Loose]) -> list[Loose]:
    taken: list[Loose] = []
    size = 0
    for segment in own:
        size += segment.size
        if taken and size > CHUNK_BYTES:
            break
        taken.append(segment)
    return taken


def extent_of(conn: sa.Connection, source: Source) -> Extent | None:
    """Return what of a source is compacted, None where nothing is."""
    of_source = [extents.c[field] == value for field, value in source._asdict().items()]
    row = conn.execute(sa.select(extents).where(*of_source)).one_or_none()
    return None if row is None else Extent(row.first_step, row.last_step, row.through)


def write_round(conn: sa.Connection, made: Round) -> bool:
    """Put a round's blocks in the place of its segments, in the caller's transaction.

    False, with nothing written, where the run was compacted meanwhile by somebody else, or is gone.
    """
    source = made.source
    if not claim_round(conn, source.run, made.rounds):
        return False
    table = derived_segments if source.derived else segments
    delete_rows(conn, table, made.segments)
    delete_rows(conn, blocks, made.replaced)
    if made.blocks:
        place = source._asdict()
        rows = [{name: getattr(block, name) for name in NewBlock.__slots__} for block in made.blocks]
        conn.execute(sa.insert(blocks), [place | row for row in rows])
    note_damaged(conn, made.damaged)
    if made.extent is None:
        return True
    extent = {name: getattr(made.extent, name) for name in Extent.__slots__}
    insert = insert_into(conn, extents).values(**source._asdict(), **extent)
    conn.execute(insert.on_conflict_do_update(index_elements=list(Source._fields), set_=extent))
    return True


def note_compacted(conn: sa.Connection, run: str, batch: int, rounds: int) -> None:
    """Note that nothing was left to compact of the batches up to one, unless the run was compacted meanwhile."""
    if claim_round(conn, run, rounds):
        conn.execute(sa.update(compactions).where(compactions.c.run == run).values(batch=batch))


def derived_batch(conn: sa.Connection, run: str) -> int:
    """Return the number of the batch that a run is derived up to, 0 for one that is gone."""
    return conn.execute(sa.select(cursors.c.batch).where(cursors.c.run == run)).scalar_one_or_none() or 0


def claim_round(conn: sa.Connection, run: str, rounds: int) -> bool:
    """Take the run's row of compactions, if it is as it was read; the run itself is then not deleted meanwhile."""
    alive = sa.select(runs.c.id).where(runs.c.id == run).with_for_update(read=True, key_share=True)
    if conn.execute(alive).one_or_none() is None:
        return False
    conn.execute(insert_into(conn, compactions).values(run=run, batch=0, rounds=0).on_conflict_do_nothing())
    same = compactions.c.run == run, compactions.c.rounds == rounds
    return conn.execute(sa.update(compactions).where(*same).values(rounds=rounds + 1)).rowcount == 1


def compact_anew(conn: sa.Connection, run: str) -> None:
    """Let a run be looked through again for what can be compacted; a round that has begun gives up, old answers go."""
    conn.execute(insert_into(conn, compactions).values(run=run, batch=0, rounds=0).on_conflict_do_nothing())
    anew = {"batch": 0, "rounds": compactions.c.rounds + 1}
    conn.execute(sa.update(compactions).where(compactions.c.run == run).values(anew))


def delete_rows(conn: sa.Connection, table: sa.Table, ids: Sequence[int]) -> None:
    """Delete rows of a table by their ids."""
    for begin in range(0, len(ids), _AT_ONCE):
        conn.execute(sa.delete(table).where(table.c.id.in_(ids[begin : begin + _AT_ONCE])))
