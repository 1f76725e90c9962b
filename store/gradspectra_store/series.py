"""Scalars, counts and run-level metrics, bucketed to the columns asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import sqlalchemy as sa
from gradspectra_core.buckets import bucket
from gradspectra_core.records import Bool, Float64, Int64
from gradspectra_core.views import Buckets, Series

from gradspectra_store.attempts import visible_spans
from gradspectra_store.names import known_names
from gradspectra_store.pieces import joined_buckets
from gradspectra_store.ranges import Grid, Range
from gradspectra_store.scan import Found, extent, find, load, pieces
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
    measured = [name for name in given if not known[name]]
    derived = [name for name in given if known[name]]
    found = []
    for own, kind in ((measured, False), (derived, True)):
        if own:
            found += find(conn, run, "scalars", spans, wanted.start, wanted.stop, derived=kind)
    grid = Grid.of(*(extent(found) or (0, -1)), columns)
    answers = []
    for piece in pieces(found, grid.piece(len(given))):
        steps, values, present = _joined(
            _columns(conn, measured, [one for one in piece if not one.derived], derived=False),
            _columns(conn, derived, [one for one in piece if one.derived], derived=True),
        )
        some = present.any(0)
        answers.append(bucket(steps[some], values[:, some], present[:, some], grid.width))
    x, *rows = joined_buckets(answers, len(given))
    buckets = (Buckets(*row) for row in zip(*rows, strict=True))
    return Series("step", x, dict(zip(measured + derived, buckets, strict=True)))


_Columns = tuple[Int64, Float64, Bool]


def _columns(conn: sa.Connection, names: list[str], found: list[Found], *, derived: bool) -> _Columns:
    """Steps (S,), values and presence (R, S) of R series of one origin, as recorded."""
    steps, values, present = [np.empty(0, np.int64)], [np.empty((len(names), 0))], [np.empty((len(names), 0), np.bool_)]
    for segment, part in load(conn, found, scalar_part, "scalars", derived=derived):
        cut = segment.cut(part.steps)
        rows = [part.rows.get(name, -1) for name in names]
        here = np.array(rows) >= 0
        if not here.any():
            continue
        steps.append(part.steps[cut])
        values.append(part.values[rows, cut])
        mask = here.repeat(cut.stop - cut.start).reshape(len(names), -1)
        present.append(mask if part.present is None else mask & part.present[rows, cut])
    return np.concatenate(steps), np.concatenate(values, axis=1), np.concatenate(present, axis=1)


def _joined(one: _Columns, other: _Columns) -> _Columns:
    """Put series of two origins over the union of their steps."""
    if not len(one[1]) or not len(other[1]):
        return other if not len(one[1]) else one
    steps = np.union1d(one[0], other[0])
    values = np.full((len(one[1]) + len(other[1]), len(steps)), np.nan)
    present = np.zeros(values.shape, np.bool_)
    first = 0
    for own_steps, own_values, own_present in (one, other):
        rows = slice(first, first + len(own_values))
        at = np.searchsorted(steps, own_steps)
        values[rows, at] = own_values
        present[rows, at] = own_present
        first = rows.stop
    return steps, values, present
