"""Spectra of one layer over a range of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa
from gradspectra_core.records import AGGREGATES, SPECTRUM_OF, SpectrumBlock
from gradspectra_core.views import Spectrum

from gradspectra_store.attempts import visible_spans
from gradspectra_store.errors import BadRequest, UnknownLayer
from gradspectra_store.layer_tables import run_tables
from gradspectra_store.ranges import Range
from gradspectra_store.schema import segments
from gradspectra_store.segments import unpack_spectra

_AT_ONCE = 64
T = TypeVar("T")


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
    """Return the spectra of a layer at steps in [start, stop), by step; more than `columns` are thinned evenly.

    of: what was decomposed, one of SPECTRUM_OF. attempt: as in `read_series`. Raises UnknownLayer, UnknownRun and
    BadRequest.
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
    found: list[Spectrum] = []
    for begin in range(0, len(rows), _AT_ONCE):
        group = rows[begin : begin + _AT_ONCE]
        payloads = conn.execute(
            sa.select(segments.c.id, segments.c.payload).where(segments.c.id.in_([row.id for row in group]))
        )
        read = {row.id: unpack_spectra(row.payload) for row in payloads}
        for row in group:
            first, end = spans[row.attempt]
            span = Range(max(first, wanted.start), min(end, wanted.stop))
            found += _spectra(read[row.id], places[row.digest], layer, of, row.attempt, span)
    return _thinned(sorted(found, key=lambda spectrum: spectrum.step), columns)


def _segments(
    conn: sa.Connection, run: str, places: dict[str, int], spans: dict[int, tuple[int, int]], wanted: Range
) -> list[Any]:
    """The segments in range that hold a spectrum of the layer."""
    columns = [segments.c[name] for name in ("id", "attempt", "first_step", "last_step", "digest", "members")]
    query = sa.select(*columns).where(
        segments.c.run == run,
        segments.c.kind == "spectra",
        segments.c.last_step >= wanted.start,
        segments.c.first_step < wanted.stop,
        segments.c.rank == 0,
        segments.c.attempt.in_(spans),
        segments.c.digest.in_(places),
    )
    rows = conn.execute(query.order_by(segments.c.attempt, segments.c.first_step, segments.c.batch)).all()
    return [row for row in rows if _is_member(row.members, places[row.digest]) and _overlaps(row, spans[row.attempt])]


def _is_member(members: bytes, place: int) -> bool:
    return place // 8 < len(members) and bool(members[place // 8] >> place % 8 & 1)


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


def _thinned(items: Sequence[T], most: int) -> list[T]:
    """At most `most` items, evenly over the sequence, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[at] for at in np.linspace(0, len(items) - 1, most).astype(np.int64).tolist()]
