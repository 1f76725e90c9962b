"""What must agree between tables: each run has its watermark and its attempt, and no row is gone or left over."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from gradspectra_store.compaction import compact_anew
from gradspectra_store.engines import insert_into
from gradspectra_store.layer_tables import lost_tables
from gradspectra_store.lost_segments import lost_newest
from gradspectra_store.missing import missing_rows, put_back
from gradspectra_store.schema import attempts, cursors, metadata, runs, segments, sessions


def disagreements(conn: sa.Connection) -> list[str]:
    """Return what does not agree, a sentence each; a database that only this package writes has nothing of it."""
    found = [f"run {run} has no watermark, and is not shown" for run in _without_watermark(conn)]
    own = sa.and_(attempts.c.run == runs.c.id, attempts.c.number == runs.c.attempt)
    lost = sa.select(runs.c.id, runs.c.attempt).select_from(runs.outerjoin(attempts, own))
    for run, attempt in conn.execute(lost.where(attempts.c.run.is_(None)).order_by(runs.c.id)):
        found.append(f"run {run} has nothing of its attempt {attempt}, and is not shown")
    places = sa.select(runs.c.id, cursors.c.batch, runs.c.last_batch).join(cursors, cursors.c.run == runs.c.id)
    for run, batch, last in conn.execute(places.where(cursors.c.batch != runs.c.last_batch).order_by(runs.c.id)):
        if batch > last:
            found.append(f"run {run} is derived up to batch {batch}, and has only {last}")
        elif (there := _batches_after(conn, run, batch)) != last - batch:
            found.append(f"of the {last - batch} batches of run {run} that are not derived yet {there} are there")
    found += [
        f"run {run} has lost a table of its layers: what was recorded of them is damaged" for run in lost_tables(conn)
    ]
    found += missing_rows(conn) + lost_newest(conn)
    found += [f"{count} rows of {table} are of runs that are gone" for table, count in _orphans(conn).items()]
    return found


def make_agree(conn: sa.Connection) -> int:
    """Delete rows of runs that are gone, and give a run without a watermark one that lets it be shown and go on.

    What such a run has is taken for derived. Names and extents that blocks tell of are written again. Segments whose
    session is of another run, which is there, are that run's. Returns how many rows were deleted, made or changed.
    """
    home = _brought_home(conn)
    missing = _without_watermark(conn)
    for row in conn.execute(sa.select(runs).where(runs.c.id.in_(missing))).all():
        values = {"batch": row.last_batch, "attempt": row.attempt, "derived_step": row.last_step}
        insert = insert_into(conn, cursors).values(run=row.id, suggestions_step=0, **values)
        conn.execute(insert.on_conflict_do_nothing())
    done = len(missing) + home + put_back(conn)
    for name in _orphans(conn):
        table = metadata.tables[name]
        done += conn.execute(sa.delete(table).where(table.c.run.not_in(sa.select(runs.c.id)))).rowcount
    return done


def taken_for_derived(conn: sa.Connection) -> list[str]:
    """Return the runs of which `make_agree` would take something for derived that may not be: see derive_again."""
    return sorted({*_without_watermark(conn), *(run for _, run in _strayed(conn))})


def _strayed(conn: sa.Connection) -> list[Any]:
    """Segments of runs that are gone whose session is of another, which is there: their ids, and that run."""
    alive = sa.select(runs.c.id)
    strayed = sa.select(segments.c.id, sessions.c.run).join(sessions, sessions.c.id == segments.c.session)
    return list(conn.execute(strayed.where(segments.c.run.not_in(alive), sessions.c.run.in_(alive))).all())


def _brought_home(conn: sa.Connection) -> int:
    found = _strayed(conn)
    for segment, run in found:
        conn.execute(sa.update(segments).where(segments.c.id == segment).values(run=run))
        compact_anew(conn, run)
    return len(found)


def _without_watermark(conn: sa.Connection) -> list[str]:
    query = sa.select(runs.c.id).select_from(runs.outerjoin(cursors, cursors.c.run == runs.c.id))
    return list(conn.execute(query.where(cursors.c.run.is_(None)).order_by(runs.c.id)).scalars())


def _batches_after(conn: sa.Connection, run: str, batch: int) -> int:
    later = segments.c.run == run, segments.c.kind == "scalars", segments.c.batch > batch
    return int(conn.execute(sa.select(sa.func.count()).select_from(segments).where(*later)).scalar_one())


def _orphans(conn: sa.Connection) -> dict[str, int]:
    """Rows of runs that are gone, by table: foreign keys leave none, where every program obeys them."""
    found = {}
    for table in metadata.sorted_tables:
        if "run" in table.c:
            gone = table.c.run.not_in(sa.select(runs.c.id))
            count = int(conn.execute(sa.select(sa.func.count()).select_from(table).where(gone)).scalar_one())
            if count:
                found[table.name] = count
    return found
