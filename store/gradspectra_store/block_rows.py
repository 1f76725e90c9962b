"""Rows of blocks: found by the steps they reach over, read, and cut to size before they are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from gradspectra_core.blocks import DamagedBlock, Recorded, unpack_level, unpack_recorded
from gradspectra_core.pyramid import Level
from gradspectra_core.records import Int64
from gradspectra_core.widths import FACTOR, width_of

from gradspectra_store.beside_each_other import decoded
from gradspectra_store.block_schema import blocks
from gradspectra_store.prepared import Prepared, PreparedAmong
from gradspectra_store.segment_cache import SegmentCache
from gradspectra_store.stretches import Stretch, united

MOST_ENTRIES = 512
MOST_VALUES = 1 << 15
SPAN = 1 << 18
"""No block reaches over more steps than this, times the width of its buckets: a search begins so far before."""

MOST_PLACES = 4
"""Blocks of so many names, levels and ranges are found by one statement."""

_RANGES = 4
_AT_ONCE = 64


class Source(NamedTuple):
    """Numbers that are compacted together."""

    run: str
    kind: str
    derived: bool
    attempt: int
    rank: int


class BlockRow(NamedTuple):
    """A block without its payload: buckets of 8^level steps over the steps [first, stop)."""

    id: int
    attempt: int
    name: str
    level: int
    first: int
    stop: int
    entries: int

    @property
    def stretch(self) -> Stretch:
        """The steps it reaches over."""
        return Stretch(self.attempt, self.first, self.stop)


Content = Recorded | Level | DamagedBlock
_COLUMNS = [blocks.c[name] for name in ("id", "attempt", "name", "level", "first", "stop", "entries")]


def _places(count: int) -> sa.Select[Any] | sa.CompoundSelect[Any]:
    """Say in SQL which blocks have a name, a level and steps in a range, of so many of these."""
    found = [
        sa.select(*_COLUMNS).where(
            *(blocks.c[field] == sa.bindparam(f"of_{field}") for field in Source._fields),
            *(blocks.c[field] == sa.bindparam(f"{field}_{at}") for field in ("name", "level")),
            blocks.c.first >= sa.bindparam(f"reach_{at}"),
            blocks.c.first < sa.bindparam(f"until_{at}"),
            blocks.c.stop > sa.bindparam(f"since_{at}"),
        )
        for at in range(count)
    ]
    return found[0] if count == 1 else sa.union_all(*found)


_in_places = [Prepared(_places(count)) for count in range(1, MOST_PLACES + 1)]
_overlapping = PreparedAmong(
    lambda names: sa.select(*_COLUMNS).where(
        *(blocks.c[field] == sa.bindparam(f"of_{field}") for field in (*Source._fields, "level")),
        blocks.c.name.in_(names),
        blocks.c.first >= sa.bindparam("reach"),
        blocks.c.first < sa.bindparam("until"),
        blocks.c.stop > sa.bindparam("since"),
    )
)
_of_level = sa.select(*_COLUMNS).where(
    *(blocks.c[field] == sa.bindparam(f"of_{field}") for field in (*Source._fields, "name", "level"))
)
_newest = _of_level.order_by(blocks.c.first.desc()).limit(sa.bindparam("most", type_=sa.Integer))
_oldest = _of_level.order_by(blocks.c.first).limit(1)
_contents = PreparedAmong(lambda ids: sa.select(blocks.c.id, blocks.c.payload).where(blocks.c.id.in_(ids)))


def find_blocks(
    conn: sa.Connection, source: Source, names: Sequence[str], level: int, stretches: Iterable[Stretch]
) -> list[BlockRow]:
    """Return the blocks of a level with steps in the stretches, by attempt, name and step; some more may be given.

    source: its attempt is left out of account, the stretches have their own.
    """
    by_attempt: dict[int, list[Stretch]] = {}
    for one in united(stretches):
        by_attempt.setdefault(one.attempt, []).append(one)
    found: dict[int, BlockRow] = {}
    place = _bound(source, of_level=level)
    most = SPAN * width_of(level)
    for own in by_attempt.values():
        ranges = own if len(own) <= _RANGES else [Stretch(own[0].attempt, own[0].first, own[-1].stop)]
        for attempt, first, stop in ranges:
            place |= {"of_attempt": attempt, "reach": max(first - most, 0), "until": stop, "since": first}
            for row in _overlapping.each(conn, names, place):
                found[row[0]] = BlockRow(*row)
    return sorted(found.values(), key=lambda row: (row.attempt, row.name, row.first))


def find_in_places(conn: sa.Connection, source: Source, places: Sequence[tuple[str, int, Stretch]]) -> list[BlockRow]:
    """Return the blocks of each name and level with steps in its stretch, by one statement.

    places: from 1 to MOST_PLACES, of one attempt. A block with steps in several is given as often.
    """
    given: dict[str, Any] = _bound(source._replace(attempt=places[0][2].attempt))
    for at, (name, level, (_, first, stop)) in enumerate(places):
        given[f"name_{at}"], given[f"level_{at}"], given[f"since_{at}"], given[f"until_{at}"] = name, level, first, stop
        given[f"reach_{at}"] = max(first - SPAN * width_of(level), 0)
    return [BlockRow(*row) for row in _in_places[len(places) - 1].each(conn, given)]


def newest_blocks(conn: sa.Connection, source: Source, name: str, level: int, most: int) -> list[BlockRow]:
    """Return up to `most` blocks of the latest steps, in order of steps."""
    rows = conn.execute(_newest, _bound(source, of_name=name, of_level=level, most=most)).all()
    return [BlockRow(*row) for row in reversed(rows)]


def oldest_block(conn: sa.Connection, source: Source, name: str, level: int) -> BlockRow | None:
    """Return the block of the first steps of a level, None where the level is not stored."""
    row = conn.execute(_oldest, _bound(source, of_name=name, of_level=level)).one_or_none()
    return None if row is None else BlockRow(*row)


def _bound(source: Source, **more: Any) -> dict[str, Any]:
    return {f"of_{field}": value for field, value in source._asdict().items()} | more


def load_blocks(conn: sa.Connection, rows: Sequence[BlockRow], most: int | None = None) -> dict[int, Content]:
    """Read blocks by id, from the cache where they are kept; a damaged one is given as the error that says so.

    most: how many rows of numbers there are; a block of more is damaged, since nobody can tell what they are of.
    """
    cache: SegmentCache | None = conn.get_execution_options().get("segment_cache")
    found: dict[int, Content] = {}
    missing: dict[int, BlockRow] = {}
    for row in rows:
        kept = None if cache is None else cache.get(("block", row.id))
        if kept is None:
            missing[row.id] = row
        else:
            found[row.id] = kept
    ids = list(missing)
    for begin in range(0, len(ids), _AT_ONCE):
        payloads = _contents.each(conn, ids[begin : begin + _AT_ONCE], {})
        for identity, content in decoded(payloads, partial(_content, missing)):
            found[identity] = content
            if cache is not None and not isinstance(content, DamagedBlock):
                cache.put(("block", identity), content)
    return found if most is None else {identity: _of_known(content, most) for identity, content in found.items()}


def _of_known(content: Content, most: int) -> Content:
    if isinstance(content, DamagedBlock):
        return content
    rows = content.rows if isinstance(content, Level) else content.values.shape[0]
    return content if rows <= most else DamagedBlock(f"a block has {rows} rows, and {most} are known")


def _content(rows: Mapping[int, BlockRow], identity: int, payload: bytes) -> Content:
    try:
        return unpack_recorded(payload) if rows[identity].level == 0 else unpack_level(payload)
    except DamagedBlock as error:
        return error


def most_entries(rows: int) -> int:
    """Return how many steps or buckets of so many rows a block may hold."""
    return max(min(MOST_ENTRIES, MOST_VALUES // max(rows, 1)), 8)


def portions(numbers: Int64, rows: int) -> Iterator[slice]:
    """Cut steps (level 0) or bucket numbers (above), strictly increasing, into what one block may hold each.

    Where it can be, between wider buckets: those are then made of each block by itself when they are read.
    """
    most, begin = most_entries(rows), 0
    while begin < len(numbers):
        end = min(begin + most, int(np.searchsorted(numbers, numbers[begin] + SPAN)))
        if end < len(numbers):
            between = int(np.searchsorted(numbers, numbers[end] // FACTOR * FACTOR))
            end = between if between > begin else end
        yield slice(begin, end)
        begin = end
