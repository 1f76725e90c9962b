"""Find the segments that a question about a range of steps needs, and read only those not read lately."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import sqlalchemy as sa

from gradspectra_store.block_schema import extents
from gradspectra_store.errors import StoreDamaged
from gradspectra_store.prepared import Prepared, PreparedAmong
from gradspectra_store.schema import derived_segments, segments
from gradspectra_store.segment_cache import SegmentCache
from gradspectra_store.segments import opened
from gradspectra_store.stretches import Stretch

_AT_ONCE = 64
_TABLES = {False: segments, True: derived_segments}


def _of_rank_0(table: sa.Table, kind: str, *columns: Any) -> sa.Select[Any]:
    """Say the kind in the text: with it as a parameter SQLite, which has an index of one kind, plans at each call."""
    of_kind = table.c.kind == sa.literal_column(f"'{kind}'")
    query = sa.select(*columns).where(table.c.run == sa.bindparam("of_run"), of_kind)
    return query if table is derived_segments else query.where(table.c.rank == 0)


def select_in_range(derived: bool, kind: str) -> sa.Select[Any]:
    """Say in SQL which segments of a kind have steps in [start, stop)."""
    table = _TABLES[derived]
    part = table.c.part if table is derived_segments else sa.literal_column("0")
    columns = [*(table.c[name] for name in ("attempt", "batch")), part]
    columns += [table.c[name] for name in ("id", "first_step", "last_step", "digest")]
    overlapping = table.c.last_step >= sa.bindparam("start"), table.c.first_step < sa.bindparam("stop")
    return _of_rank_0(table, kind, *columns).where(*overlapping)


def select_reaches(derived: bool, kind: str) -> sa.Select[Any]:
    """Say in SQL which steps of each attempt segments of a kind reach over."""
    table = _TABLES[derived]
    first, last = sa.func.min(table.c.first_step), sa.func.max(table.c.last_step)
    columns = table.c.attempt, first.label("first_step"), last.label("last_step")
    return _of_rank_0(table, kind, *columns).group_by(table.c.attempt)


REACHES_OF_BLOCKS = sa.select(extents.c.attempt, extents.c.first_step, extents.c.last_step).where(
    *(extents.c[name] == sa.bindparam(f"of_{name}") for name in ("run", "kind", "derived")), extents.c.rank == 0
)
_sources = [(derived, kind) for derived in _TABLES for kind in ("scalars", "layers", "spectra")]
_in_range = {source: Prepared(select_in_range(*source)) for source in _sources}
_reaching = {source: Prepared(sa.union_all(select_reaches(*source), REACHES_OF_BLOCKS)) for source in _sources}


def _select_payloads(table: sa.Table) -> PreparedAmong:
    columns = table.c.id, table.c.payload, table.c.checksum
    return PreparedAmong(lambda ids: sa.select(*columns).where(table.c.id.in_(ids)))


_payloads = {derived: _select_payloads(table) for derived, table in _TABLES.items()}


class _Part(Protocol):
    @property
    def nbytes(self) -> int: ...


PartT = TypeVar("PartT", bound=_Part)


@dataclass(frozen=True, slots=True)
class Found:
    """One segment in range: where its payload is, the steps it holds, and which are asked for: [first, stop)."""

    id: int
    derived: bool
    digest: str | None
    attempt: int
    holds_first: int
    holds_last: int
    first: int
    stop: int

    @property
    def stretch(self) -> Stretch:
        """The steps that are asked for and that it may have."""
        return Stretch(self.attempt, max(self.first, self.holds_first), min(self.stop, self.holds_last + 1))


Reaches = dict[int, tuple[int, int]]


def reaches(conn: sa.Connection, run: str, kind: str, *, derived: bool) -> Reaches:
    """Return the first and last step of a kind of numbers in each attempt that has any, of rank 0.

    Whether the numbers lie in segments or in blocks makes no difference.
    """
    return reaches_of(_reaching[derived, kind].rows(conn, {"of_run": run, "of_kind": kind, "of_derived": derived}))


def reaches_of(rows: Iterable[Sequence[Any]]) -> Reaches:
    """As `reaches`, of rows as `select_reaches` and REACHES_OF_BLOCKS give."""
    found: Reaches = {}
    for attempt, begin, end in rows:
        first, last = found.get(attempt, (begin, end))
        found[attempt] = min(first, begin), max(last, end)
    return found


def extent(of: Iterable[Reaches], spans: dict[int, tuple[int, int]], start: int, stop: int) -> tuple[int, int] | None:
    """Return the first and last step in [start, stop) that attempts reach to and speak for, None where none does."""
    cut = []
    for attempt, (first, last) in (item for one in of for item in one.items()):
        begin, end = spans.get(attempt, (0, 0))
        first, last = max(first, begin, start), min(last, end - 1, stop - 1)
        if first <= last:
            cut.append((first, last))
    return (min(first for first, _ in cut), max(last for _, last in cut)) if cut else None


def find(
    conn: sa.Connection, run: str, kind: str, spans: dict[int, tuple[int, int]], start: int, stop: int, *, derived: bool
) -> list[Found]:
    """Return the segments of a kind with steps in [start, stop) that their attempt speaks for, in order of steps.

    spans: as `visible_spans` gives. Segments of ranks other than 0 are left out.
    """
    rows = _in_range[derived, kind].rows(conn, {"of_run": run, "start": start, "stop": stop})
    return found_of(rows, spans, start, stop, derived=derived)


def found_of(
    rows: Iterable[tuple[Any, ...]], spans: dict[int, tuple[int, int]], start: int, stop: int, *, derived: bool
) -> list[Found]:
    """As `find`, of rows as `select_in_range` gives."""
    found = []
    for attempt, _, _, identity, holds_first, holds_last, digest in sorted(rows):
        first, end = spans.get(attempt, (0, 0))
        first, end = max(first, start), min(end, stop)
        if holds_last >= first and holds_first < end:
            found.append(Found(identity, derived, digest, attempt, holds_first, holds_last, first, end))
    return found


def load(
    conn: sa.Connection, found: Sequence[Found], read: Callable[[bytes], PartT], what: str, *, derived: bool
) -> Iterator[tuple[Found, PartT | None]]:
    """Give each segment with the part that `read` makes of its payload, in order, from the cache where it is kept.

    what: names the part that `read` makes, in the cache. A segment that is damaged is given with None.
    """
    cache: SegmentCache | None = conn.get_execution_options().get("segment_cache")
    for begin in range(0, len(found), _AT_ONCE):
        group = found[begin : begin + _AT_ONCE]
        parts: dict[int, PartT] = {}
        if cache is not None:
            kept = ((segment.id, cache.get((derived, segment.id, what))) for segment in group)
            parts = {identity: part for identity, part in kept if part is not None}
        missing = [segment.id for segment in group if segment.id not in parts]
        for identity, payload, checksum in _payloads[derived].each(conn, missing, {}):
            try:
                parts[identity] = part = opened(read, payload, checksum)
            except StoreDamaged:
                continue
            if cache is not None:
                cache.put((derived, identity, what), part)
        yield from ((segment, parts.get(segment.id)) for segment in group)
