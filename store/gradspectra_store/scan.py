"""Find the segments that a question about a range of steps needs, and read only those not read lately."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import sqlalchemy as sa
from gradspectra_core.records import Int64

from gradspectra_store.schema import derived_segments, segments
from gradspectra_store.segment_cache import SegmentCache

_AT_ONCE = 64


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
    holds_first: int
    holds_last: int
    first: int
    stop: int

    def cut(self, steps: Int64) -> slice:
        """Return the slice of the segment's sorted steps that is asked for."""
        if self.first <= self.holds_first and self.holds_last < self.stop:
            return slice(0, len(steps))
        first, stop = np.searchsorted(steps, (self.first, self.stop))
        return slice(int(first), int(stop))


def pieces(found: Sequence[Found], size: int) -> Iterator[list[Found]]:
    """Give the segments by ranges of `size` steps, in order of steps; one over a bound is in both, each a part."""
    ranges: dict[int, list[Found]] = {}
    for one in found:
        start = max(one.first, one.holds_first) // size
        end = min(one.stop - 1, one.holds_last) // size
        if start == end:
            ranges.setdefault(start, []).append(one)
            continue
        for at in range(start, end + 1):
            part = replace(one, first=max(one.first, at * size), stop=min(one.stop, (at + 1) * size))
            ranges.setdefault(at, []).append(part)
    for at in sorted(ranges):
        yield ranges[at]


def extent(found: Iterable[Found]) -> tuple[int, int] | None:
    """Return the first and last step that these segments can give, None where they give none."""
    spans = [(max(one.first, one.holds_first), min(one.stop - 1, one.holds_last)) for one in found]
    return (min(first for first, _ in spans), max(last for _, last in spans)) if spans else None


def find(
    conn: sa.Connection, run: str, kind: str, spans: dict[int, tuple[int, int]], start: int, stop: int, *, derived: bool
) -> list[Found]:
    """Return the segments of a kind with steps in [start, stop) that their attempt speaks for, in order of steps.

    spans: as `visible_spans` gives. Segments of ranks other than 0 are left out.
    """
    table = derived_segments if derived else segments
    columns = [table.c.id, table.c.attempt, table.c.first_step, table.c.last_step, table.c.digest]
    query = sa.select(*columns).where(
        table.c.run == run, table.c.kind == kind, table.c.last_step >= start, table.c.first_step < stop
    )
    if not derived:
        query = query.where(segments.c.rank == 0)
    found = []
    for row in conn.execute(query.order_by(table.c.attempt, table.c.batch)):
        first, end = spans.get(row.attempt, (0, 0))
        first, end = max(first, start), min(end, stop)
        if row.last_step >= first and row.first_step < end:
            found.append(Found(row.id, derived, row.digest, row.first_step, row.last_step, first, end))
    return found


def load(
    conn: sa.Connection, found: Sequence[Found], read: Callable[[bytes], PartT], what: str, *, derived: bool
) -> Iterator[tuple[Found, PartT]]:
    """Give each segment with the part that `read` makes of its payload, in order, from the cache where it is kept.

    what: names the part that `read` makes, in the cache.
    """
    cache: SegmentCache | None = conn.get_execution_options().get("segment_cache")
    for begin in range(0, len(found), _AT_ONCE):
        group = found[begin : begin + _AT_ONCE]
        parts: dict[int, PartT] = {}
        if cache is not None:
            kept = ((segment.id, cache.get((derived, segment.id, what))) for segment in group)
            parts = {identity: part for identity, part in kept if part is not None}
        missing = [segment.id for segment in group if segment.id not in parts]
        for identity, payload in _payloads(conn, missing, derived):
            parts[identity] = part = read(payload)
            if cache is not None:
                cache.put((derived, identity, what), part)
        yield from ((segment, parts[segment.id]) for segment in group)


def _payloads(conn: sa.Connection, ids: Sequence[int], derived: bool) -> Iterable[Any]:
    if not ids:
        return ()
    table = derived_segments if derived else segments
    return conn.execute(sa.select(table.c.id, table.c.payload).where(table.c.id.in_(ids)))
