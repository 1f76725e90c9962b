"""What retention would free, and when: told before anything goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from gradspectra_store.block_schema import blocks
from gradspectra_store.paging import PAGE, page
from gradspectra_store.retention import Retention, open_to
from gradspectra_store.retention_schema import retirements
from gradspectra_store.retiring import finer_blocks, open_spans
from gradspectra_store.schema import derived_segments, runs, segments
from gradspectra_store.thinning import spectra_sources, spectra_width


@dataclass(frozen=True, slots=True)
class Freed:
    """What retention comes to: a run, when (seconds since 1970), and its bytes of numbers now and, about, after."""

    run: str
    project: str
    name: str
    state: str
    updated_at: float
    retires_at: float
    bytes: int
    bytes_after: int


def to_be_freed(
    conn: sa.Connection, wanted: Retention, cursor: str | None = None, limit: int = PAGE
) -> tuple[list[Freed], str | None]:
    """Return a page of the runs that are to be retired, those that come first first, and the cursor of the next page.

    Raises BadRequest for a broken cursor or a limit out of 1 to 1000.
    """
    if not wanted.days:
        return [], None
    fields = [runs.c[name] for name in ("id", "project", "name", "state", "updated_at")]
    query = sa.select(*fields).select_from(runs.outerjoin(retirements, retirements.c.run == runs.c.id))
    keys = runs.c.updated_at, runs.c.id
    rows, following = page(conn, query.where(*open_to(wanted)), keys, descending=False, cursor=cursor, limit=limit)
    return [_freed(conn, row, wanted) for row in rows], following


def bytes_of(conn: sa.Connection, run: str) -> int:
    """Return the bytes of all numbers of a run: its segments, blocks and pyramid."""
    return sum(_size(conn, table, [table.c.run == run]) for table in (segments, derived_segments, blocks))


def bytes_going(conn: sa.Connection, run: str, wanted: Retention) -> int:
    """Return how many of a run's bytes would go; what goes of spectra is estimated by their number."""
    by_reach: dict[tuple[Any, int, int], list[str]] = {}
    for source, spans in open_spans(conn, run, wanted):
        for span in spans:
            by_reach.setdefault((source, span.first, span.stop), []).append(span.name)
    going = sum(
        _size(conn, blocks, finer_blocks(source, names, first, stop, wanted.level))
        for (source, first, stop), names in by_reach.items()
    )
    return going + _spectra_going(conn, run, wanted)


def _freed(conn: sa.Connection, row: Any, wanted: Retention) -> Freed:
    size = bytes_of(conn, row.id)
    comes = wanted.comes_at(row.updated_at)
    assert comes is not None
    place = row.id, row.project, row.name, row.state, row.updated_at
    return Freed(*place, comes, size, size - bytes_going(conn, row.id, wanted))


def _size(conn: sa.Connection, table: sa.Table, where: list[sa.ColumnElement[bool]]) -> int:
    total = sa.func.coalesce(sa.func.sum(sa.func.length(table.c.payload)), 0)
    return int(conn.execute(sa.select(total).where(*where)).scalar_one())


def _spectra_going(conn: sa.Connection, run: str, wanted: Retention) -> int:
    """The share of their bytes by which each layer has more spectra than buckets, if they are spread evenly."""
    size = sa.func.length(segments.c.payload).label("size")
    columns = [*(segments.c[name] for name in ("attempt", "rank", "digest", "members")), size]
    query = sa.select(*columns).where(segments.c.run == run, segments.c.kind == "spectra")
    totals: dict[tuple[int, int], int] = {}
    counts: dict[tuple[int, int], dict[tuple[str, int], int]] = {}
    for row in conn.execute(query):
        place = row.attempt, row.rank
        totals[place] = totals.get(place, 0) + row.size
        own = counts.setdefault(place, {})
        bits = np.unpackbits(np.frombuffer(row.members, np.uint8), bitorder="little")
        for member in np.flatnonzero(bits).tolist():
            own[row.digest, member] = own.get((row.digest, member), 0) + 1
    going = 0.0
    for source, first, last in spectra_sources(conn, run):
        width = spectra_width(first, last, wanted)
        place, most = (source.attempt, source.rank), last // width - first // width + 2
        kept = sum(min(count, most) for count in counts[place].values()) / sum(counts[place].values())
        going += totals[place] * (1 - kept) if width > 1 else 0.0
    return int(going)
