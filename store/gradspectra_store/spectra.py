"""Spectra of one layer over a range of steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.records import AGGREGATES, SPECTRUM_OF, SpectrumBlock
from gradspectra_core.views import Spectrum

from gradspectra_store.attempts import visible_spans
from gradspectra_store.bitmaps import has_bit
from gradspectra_store.errors import BadRequest, StoreDamaged, UnknownLayer
from gradspectra_store.layer_tables import run_tables
from gradspectra_store.pieces import first_and_last
from gradspectra_store.ranges import Range
from gradspectra_store.schema import segments
from gradspectra_store.segments import opened, unpack_spectra
from gradspectra_store.stretches import Stretch, within

MOST_READ = 8
"""Segments read for a bucket at most, the newest first, until one has a spectrum of what was asked for."""

_AT_ONCE = 64


def read_spectra(
    conn: sa.Connection,
    run: str,
    layer: str,
    start: int | None = None,
    stop: int | None = None,
    columns: int = 1000,
    of: str = "gradient",
    attempt: int | None = None,
) -> list[Spectrum]:
    """Return the spectra of a layer that `find_spectra` finds."""
    return find_spectra(conn, run, layer, start, stop, columns, of, attempt).spectra


@dataclass(frozen=True, slots=True)
class FoundSpectra:
    """Spectra by step; damaged: as in core's Series, where it was looked for some."""

    spectra: list[Spectrum]
    damaged: tuple[tuple[int, int], ...]


def find_spectra(
    conn: sa.Connection,
    run: str,
    layer: str,
    start: int | None = None,
    stop: int | None = None,
    columns: int = 1000,
    of: str = "gradient",
    attempt: int | None = None,
) -> FoundSpectra:
    """Return the spectra of a layer at steps in [start, stop), by step, at most `columns`.

    Of more, the first stays and the last in each bucket of steps, as narrow as they can be: a newer spectrum moves
    none of the others. What is not answered is not read. of: what was decomposed, one of SPECTRUM_OF. attempt: as in
    `read_series`. Raises UnknownLayer, UnknownRun and BadRequest.
    """
    wanted = Range.of(start, stop, columns)
    if of not in SPECTRUM_OF:
        raise BadRequest("of", f"must be one of {', '.join(SPECTRUM_OF)}, got {of!r}")
    spans = visible_spans(conn, run, attempt)
    places = {
        digest: table.table.names.index(layer)
        for digest, table in run_tables(conn, run).items()
        if layer in table.table.names
    }
    if not places:
        raise UnknownLayer(layer)
    rows = _segments(conn, run, places, spans, wanted)
    found: dict[int, list[Spectrum]] = {}
    damaged: set[Stretch] = set()
    waiting = _buckets([row.last_step for row in rows], columns)
    for _ in range(MOST_READ):
        turn = [bucket.pop() for bucket in waiting]
        for at, block in _read(conn, rows, sorted(set(turn) - found.keys())):
            row = rows[at]
            first, end = spans[row.attempt]
            span = Range(max(first, wanted.start), min(end, wanted.stop))
            if block is None:
                found[at] = []
                own = Stretch(row.attempt, row.first_step, row.last_step + 1)
                damaged.update(within([own], Stretch(row.attempt, span.start, span.stop)))
            else:
                found[at] = _spectra(block, places[row.digest], layer, of, row.attempt, span)
        waiting = [bucket for bucket, at in zip(waiting, turn, strict=True) if bucket and not found[at]]
    spectra = sorted(chain.from_iterable(found.values()), key=lambda spectrum: spectrum.step)
    chosen = [spectra[bucket[-1]] for bucket in _buckets([spectrum.step for spectrum in spectra], columns)]
    return FoundSpectra(chosen, first_and_last(damaged))


def _buckets(steps: Sequence[int], most: int) -> list[list[int]]:
    """Cut ascending steps into at most `most` buckets; returns the places of each, what it is to show being the last.

    The first of them is there for the first place, and the others are buckets of one width.
    """
    if len(steps) <= most:
        return [[at] for at in range(len(steps))]
    alone = [list(range(min(MOST_READ, len(steps))))[::-1]] if most > 1 else []
    ends = np.array(steps, np.int64)
    width = 1
    while len(np.unique(ends // width)) > most - len(alone):
        width *= 2
    begins = np.flatnonzero(np.diff(ends // width, prepend=-1)).tolist()
    stops = [*begins[1:], len(steps)]
    return alone + [list(range(begin, stop)) for begin, stop in zip(begins, stops, strict=True)]


def _read(
    conn: sa.Connection, rows: Sequence[Any], places: Sequence[int]
) -> Iterator[tuple[int, SpectrumBlock | None]]:
    """The blocks of some of the segments, a few in memory at a time; None of one that is damaged."""
    for begin in range(0, len(places), _AT_ONCE):
        at = {rows[place].id: place for place in places[begin : begin + _AT_ONCE]}
        columns = segments.c.id, segments.c.payload, segments.c.checksum
        for row in conn.execute(sa.select(*columns).where(segments.c.id.in_(list(at)))):
            try:
                block = opened(unpack_spectra, row.payload, row.checksum)
            except StoreDamaged:
                block = None
            yield at[row.id], block


def _segments(
    conn: sa.Connection, run: str, places: dict[str, int], spans: dict[int, tuple[int, int]], wanted: Range
) -> list[Any]:
    """The segments in range that hold a spectrum of the layer, by their last step; an index has all that is asked."""
    columns = [segments.c[name] for name in ("id", "attempt", "first_step", "last_step", "digest")]
    of_layer = [
        sa.and_(segments.c.digest == digest, has_bit(conn, segments.c.members, place))
        for digest, place in places.items()
    ]
    query = sa.select(*columns).where(
        segments.c.run == run,
        segments.c.kind == sa.literal_column("'spectra'"),  # as text: an index of some rows is not used for a parameter
        segments.c.last_step >= wanted.start,
        segments.c.first_step < wanted.stop,
        segments.c.rank == 0,
        segments.c.attempt.in_(spans),
        sa.or_(*of_layer),
    )
    rows = conn.execute(query.order_by(segments.c.last_step, segments.c.id)).all()
    return [row for row in rows if _overlaps(row, spans[row.attempt])]


def _overlaps(row: Any, span: tuple[int, int]) -> bool:
    return bool(row.last_step >= span[0] and row.first_step < span[1])


def _spectra(block: SpectrumBlock, place: int, layer: str, of: str, attempt: int, span: Range) -> list[Spectrum]:
    mine = np.flatnonzero((block.layer == place) & (block.step >= span.start) & (block.step < span.stop))
    return [_spectrum(block, at, layer, attempt) for at in mine.tolist() if block.of[at] == of]


def _spectrum(block: SpectrumBlock, at: int, layer: str, attempt: int) -> Spectrum:
    length = int(block.length[at])
    numbers: dict[str, Any] = dict(zip(AGGREGATES, block.aggregates[at].tolist(), strict=True))
    for name in ("k90", "k99"):
        numbers[name] = int(numbers[name])
    return Spectrum(
        layer=layer,
        of=block.of[at],
        step=int(block.step[at]),
        attempt=attempt,
        method=block.method[at],
        rows=int(block.rows[at]),
        columns=int(block.columns[at]),
        index=block.index[at, :length].copy(),
        singular_values=block.values[at, :length].astype(np.float64),
        **numbers,
    )
