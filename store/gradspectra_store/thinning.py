"""The next transaction that thins the spectra of a run that is retired: so many of each layer and matrix are left.

An attempt's steps are cut into buckets of one width, and of each layer and matrix the last spectrum in a bucket stays,
in the first bucket its first one too. What has gone already does not change what stays, so that it can be done bit by
bit, twice, or again with a larger width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.records import Bool, SpectrumBlock

from gradspectra_store.bitmaps import members_of
from gradspectra_store.block_rows import Source
from gradspectra_store.compaction import delete_rows
from gradspectra_store.errors import StoreDamaged
from gradspectra_store.layer_tables import read_table
from gradspectra_store.ranges import Grid
from gradspectra_store.retention import Retention
from gradspectra_store.retiring import Span, note_span, spans_before
from gradspectra_store.schema import segments
from gradspectra_store.segments import checksum_of, opened, pack_spectra, unpack_spectra

MOST_SEGMENTS = 500
"""So many segments at most are changed in one transaction."""

_AT_ONCE = 64
_PLACE = ("id", "batch", "attempt", "rank", "first_step", "last_step", "digest", "session", "sequence")
Kept = dict[int, Bool]
"""For segments that have spectra to lose, by id: which stay."""


@dataclass(frozen=True, slots=True)
class Thinning:
    """One transaction: these segments go, these come in the place of some of them."""

    source: Source
    width: int
    span: Span
    gone: tuple[int, ...]
    made: tuple[dict[str, Any], ...]

    def write(self, conn: sa.Connection) -> None:
        """Do it in the caller's transaction, which has taken the run."""
        delete_rows(conn, segments, self.gone)
        if self.made:
            conn.execute(sa.insert(segments), list(self.made))
        note_span(conn, self.source, self.span, self.width)


def spectra_width(first: int, last: int, wanted: Retention) -> int:
    """Steps of the buckets of which one spectrum stays, for an attempt with spectra from step first to last."""
    return Grid.of(first, last, max(wanted.spectra - 1, 1)).width


def next_spectra(conn: sa.Connection, run: str, wanted: Retention) -> Thinning | None:
    """Compute the next transaction from one snapshot of the run; None where nothing is left to thin."""
    for source, first, last in spectra_sources(conn, run):
        width = spectra_width(first, last, wanted)
        before = spans_before(conn, source, width).get("")
        begin = first if before is None else before.stop
        while width > 1 and (at := _next_step(conn, source, begin // width * width)) is not None:
            bucket = max(at, begin) // width
            found = _thinned(conn, source, bucket, width, first)
            if found.gone:
                return found
            begin = (bucket + 1) * width
    return None


def spectra_sources(conn: sa.Connection, run: str) -> list[tuple[Source, int, int]]:
    """Return each attempt's and rank's spectra with their first and last step."""
    place = segments.c.attempt, segments.c.rank
    reach = sa.func.min(segments.c.first_step), sa.func.max(segments.c.last_step)
    query = sa.select(*place, *reach).where(segments.c.run == run, segments.c.kind == "spectra")
    rows = conn.execute(query.group_by(*place).order_by(*place))
    return [(Source(run, "spectra", False, attempt, rank), first, last) for attempt, rank, first, last in rows]


def _of(source: Source, first: int, stop: int) -> list[sa.ColumnElement[bool]]:
    """Say of `segments`: spectra of a source with steps in [first, stop)."""
    place = source._asdict() | {"kind": "spectra"}
    of_source = [segments.c[field] == place[field] for field in ("run", "kind", "attempt", "rank")]
    return [*of_source, segments.c.last_step >= first, segments.c.first_step < stop]


def _next_step(conn: sa.Connection, source: Source, begin: int) -> int | None:
    """The first step from `begin` on at which a segment may have a spectrum."""
    found = conn.execute(sa.select(sa.func.min(segments.c.first_step)).where(*_of(source, begin, 2**62))).scalar_one()
    return None if found is None else max(int(found), begin)


def _thinned(conn: sa.Connection, source: Source, bucket: int, width: int, first: int) -> Thinning:
    """What goes of one bucket; where that is more than one transaction may change, the bucket is noted as not done."""
    begin, stop = bucket * width, (bucket + 1) * width
    rows = {
        row.id: row
        for row in conn.execute(
            sa.select(*(segments.c[name] for name in _PLACE))
            .where(*_of(source, begin, stop))
            .order_by(segments.c.first_step, segments.c.batch)
        )
    }
    kept = _kept(conn, source.run, rows, begin, stop, with_first=begin <= first)
    gone = list(kept)[:MOST_SEGMENTS]
    made: list[dict[str, Any]] = []
    some = [identity for identity in gone if kept[identity].any()]
    for identity, block in _read(conn, some):
        part = _cut(block, kept[identity])
        row = {name: getattr(rows[identity], name) for name in _PLACE if name != "id"}
        row |= {
            "first_step": int(part.step.min()),
            "last_step": int(part.step.max()),
            "members": members_of(part.layer),
        }
        payload = pack_spectra(part)
        row |= {"payload": payload, "checksum": checksum_of(payload)}
        made.append({"run": source.run, "kind": "spectra"} | row)
    reached = stop if len(gone) == len(kept) else stop - 1
    return Thinning(source, width, Span("", first, reached), tuple(gone), tuple(made))


def _kept(conn: sa.Connection, run: str, rows: dict[int, Any], begin: int, stop: int, *, with_first: bool) -> Kept:
    """Choose what stays of the steps in [begin, stop); segments that lose nothing are left out."""
    newest: dict[tuple[str, str], tuple[int, int, int]] = {}
    oldest: dict[tuple[str, str], tuple[int, int, int]] = {}
    kept: Kept = {}
    for identity, block in _read(conn, list(rows)):
        names = read_table(conn, run, block.digest).names
        kept[identity] = (block.step < begin) | (block.step >= stop)
        for at in np.flatnonzero(~kept[identity]).tolist():
            key = names[int(block.layer[at])], block.of[at]
            place = int(block.step[at]), identity, at
            newest[key] = max(newest.get(key, place), place)
            oldest[key] = min(oldest.get(key, place), place)
    for _, identity, at in [*newest.values(), *(oldest.values() if with_first else ())]:
        kept[identity][at] = True
    return {identity: own for identity, own in kept.items() if not own.all()}


def _read(conn: sa.Connection, ids: Sequence[int]) -> Iterator[tuple[int, SpectrumBlock]]:
    """The blocks by the ids of their segments; those that cannot be read back are left out, and stay."""
    columns = segments.c.id, segments.c.payload, segments.c.checksum
    for begin in range(0, len(ids), _AT_ONCE):
        chosen = segments.c.id.in_(ids[begin : begin + _AT_ONCE])
        for row in conn.execute(sa.select(*columns).where(chosen).order_by(segments.c.id)).all():
            with suppress(StoreDamaged):
                yield row.id, opened(unpack_spectra, row.payload, row.checksum)


def _cut(block: SpectrumBlock, keep: Bool) -> SpectrumBlock:
    """The spectra at `keep` alone."""
    parts: dict[str, Any] = {}
    for field in fields(block):
        own = getattr(block, field.name)
        if isinstance(own, tuple):
            own = tuple(one for one, there in zip(own, keep.tolist(), strict=True) if there)
        parts[field.name] = own[keep] if isinstance(own, np.ndarray) else own
    return SpectrumBlock(**parts)
