"""Scalars, counts and run-level metrics, bucketed to the columns asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import sqlalchemy as sa
from gradspectra_core.blocks import Recorded
from gradspectra_core.buckets import Bucketed, shown
from gradspectra_core.pyramid import Level, joined, stacked
from gradspectra_core.views import Buckets, Series
from gradspectra_core.widths import level_at, width_of

from gradspectra_store.attempts import visible_spans
from gradspectra_store.block_rows import Source
from gradspectra_store.holes import Origin, has_holes, narrowed, occupied
from gradspectra_store.levels import Levels
from gradspectra_store.names import known_names
from gradspectra_store.pieces import joined_buckets, merged_damage
from gradspectra_store.quantities import Quantity
from gradspectra_store.ranges import Grid, Range
from gradspectra_store.scan import Found, extent, find, load, reaches
from gradspectra_store.segments import scalar_part


def series_names(conn: sa.Connection, run: str) -> list[str]:
    """Return the names of all series of a run: scalars, counts and derived ones, in alphabetical order."""
    return list(known_names(conn, run, "run"))


def read_series(
    conn: sa.Connection,
    run: str,
    names: Sequence[str],
    start: int | None = None,
    stop: int | None = None,
    columns: int = 1000,
    attempt: int | None = None,
) -> Series:
    """Return series over one axis of steps in [start, stop), in at most `columns` buckets.

    Names that the run does not have are left out. attempt: that attempt by itself; None joins all, each newer one
    hiding older ones from its first step on. Raises UnknownRun, and BadRequest for a range or number of columns
    that cannot be.
    """
    wanted = Range.of(start, stop, columns)
    spans = visible_spans(conn, run, attempt)
    known = known_names(conn, run, "run")
    given = [name for name in dict.fromkeys(names) if name in known]
    origins: list[Origin] = []
    for derived in (False, True):
        own = [Quantity(name, (name,), 1, last=True) for name in given if known[name] == derived]
        if own:
            origins.append((own, series_levels(conn, run, spans, wanted, derived=derived)))
    reach = extent((levels.reaches for _, levels in origins), spans, wanted.start, wanted.stop)
    grid = Grid.of(*(reach or (0, -1)), columns)
    loose = sum(levels.loose for _, levels in origins)
    found = list(_read(origins, grid.width, grid.pieces(len(given), loose), wanted, spans))
    answers = _shown(found, grid.width)
    if has_holes(grid, columns, answers):
        there = [occupied(one, _factor(grid.width)) for one in found]
        narrow = narrowed(grid, columns, there, origins, wanted, spans)
        if narrow is not None:
            answers = _shown(_read(origins, *narrow, wanted, spans), narrow[0])
    x, *rows = joined_buckets(answers, len(given))
    buckets = (Buckets(*row) for row in zip(*rows, strict=True))
    damaged = merged_damage(levels for _, levels in origins)
    return Series("step", x, dict(zip([one.name for own, _ in origins for one in own], buckets, strict=True)), damaged)


def _read(
    origins: Sequence[Origin],
    width: int,
    pieces: Iterable[tuple[int, int]],
    wanted: Range,
    spans: dict[int, tuple[int, int]],
) -> Iterator[Sequence[Level]]:
    """Give the level that buckets of `width` steps are made of, a row for each series, piece by piece."""
    for first, end in pieces:
        stretches = Range(max(first, wanted.start), min(end, wanted.stop)).stretches(spans)
        parts = [one for own, levels in origins for one in levels.parts(own, level_at(width), stretches)]
        yield parts[0] if len(parts) == 1 else [stacked([joined(one) for one in parts])]


def _factor(width: int) -> int:
    return width // width_of(level_at(width))


def _shown(found: Iterable[Sequence[Level]], width: int) -> list[Bucketed]:
    return [shown(one, _factor(width)) for one in found]


def series_levels(
    conn: sa.Connection, run: str, spans: dict[int, tuple[int, int]], wanted: Range, *, derived: bool
) -> Levels:
    """Return what reads the series of one origin over the steps wanted. spans: as `visible_spans` gives."""
    found = find(conn, run, "scalars", spans, wanted.start, wanted.stop, derived=derived)
    segments = partial(_segments, conn, derived)
    reach = reaches(conn, run, "scalars", derived=derived)
    return Levels(conn, Source(run, "scalars", derived, 0, 0), found, segments, reach)


def _segments(
    conn: sa.Connection, derived: bool, name: str, found: Sequence[Found]
) -> Iterator[tuple[Found, Recorded | None]]:
    for segment, part in load(conn, found, scalar_part, "scalars", derived=derived):
        if part is None:
            yield segment, None
        elif name in part.rows:
            yield segment, part.recorded(name)
