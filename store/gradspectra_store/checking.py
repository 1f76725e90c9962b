"""Read segments and blocks once, to find those that are damaged, and those whose rows do not fit what is in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from gradspectra_core.blocks import DamagedBlock, unpack_level, unpack_recorded

from gradspectra_store.block_schema import blocks
from gradspectra_store.database import Store
from gradspectra_store.errors import StoreDamaged
from gradspectra_store.fitting import Known, Misfit, content_of, misfit_of_block, misfit_of_segment
from gradspectra_store.schema import derived_segments, segments
from gradspectra_store.segments import READERS, opened

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class DamagedPlace:
    """What a damaged block or segment held, its id, and in which table it is.

    level 0: numbers as recorded, above: buckets that can be made again from those below, None: a segment, of which
    `name` says the kind. misfit: of one whose numbers are whole, what is wrong with its row.
    """

    run: str
    attempt: int
    name: str
    level: int | None
    first_step: int
    last_step: int
    id: int = field(compare=False)
    table: str = field(default="", compare=False)
    misfit: Misfit | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Checked:
    """How many segments or blocks were read, whether that were all, and which are damaged."""

    count: int
    all: bool
    damaged: tuple[DamagedPlace, ...]


def check_blocks(store: Store, seconds: float) -> Checked:
    """Read blocks, the newest first, for at most about so many seconds."""
    return _check(store, seconds, {blocks: _block})


def check_segments(store: Store, seconds: float) -> Checked:
    """Read segments, the newest first, then what was derived of them, for at most about so many seconds."""
    return _check(store, seconds, {segments: _segment, derived_segments: _derived_segment})


def is_sound(row: Any) -> bool:
    """Say whether a segment can be read back. row: with its kind, payload and checksum."""
    try:
        opened(READERS[row.kind], row.payload, row.checksum)
    except (StoreDamaged, KeyError):  # the row itself may have suffered
        return False
    return True


def _check(store: Store, seconds: float, looks: dict[sa.Table, Callable[[Known, Any], DamagedPlace | None]]) -> Checked:
    until = time.monotonic() + seconds
    found: list[DamagedPlace] = []
    count = 0
    for table, look in looks.items():
        newest = sa.select(table).order_by(table.c.id.desc()).limit(_AT_ONCE)
        query = newest
        while True:
            with store.read() as conn:
                rows = conn.execute(query).all()
                known = Known(conn)
                found += [place for place in (look(known, row) for row in rows) if place is not None]
            count += len(rows)
            if len(rows) < _AT_ONCE:
                break
            query = newest.where(table.c.id < rows[-1].id)
            if time.monotonic() > until:
                return Checked(count, False, tuple(found))
    return Checked(count, True, tuple(found))


def _block(known: Known, row: Any) -> DamagedPlace | None:
    misfit = None
    try:
        content = unpack_recorded(row.payload) if row.level == 0 else unpack_level(row.payload)
        if (misfit := misfit_of_block(known, row, content)) is None:
            return None
    except DamagedBlock:
        pass
    right = {} if misfit is None else misfit.right
    first, stop = right.get("first", row.first), right.get("stop", row.stop)
    last = stop - 1 if isinstance(stop, int) else first  # the row itself may have suffered
    place = row.run, row.attempt, row.name or "times", row.level, first, last
    return DamagedPlace(*place, row.id, blocks.name, misfit)


def _segment(known: Known, row: Any) -> DamagedPlace | None:
    return _of_segment(known, row, segments.name)


def _derived_segment(known: Known, row: Any) -> DamagedPlace | None:
    return _of_segment(known, row, derived_segments.name)


def _of_segment(known: Known, row: Any, table: str) -> DamagedPlace | None:
    misfit, kind = None, row.kind
    try:
        kind, content = content_of(row)
        if (misfit := misfit_of_segment(known, row, kind, content)) is None:
            return None
    except StoreDamaged:
        pass
    right = {} if misfit is None else misfit.right
    steps = right.get("first_step", row.first_step), right.get("last_step", row.last_step)
    name = f"{'derived ' if table == derived_segments.name else ''}{kind} (segment)"
    return DamagedPlace(row.run, right.get("attempt", row.attempt), name, None, *steps, row.id, table, misfit)
