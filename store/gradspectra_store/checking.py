"""Read segments and blocks once, to find those that are damaged."""

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
from gradspectra_store.schema import derived_segments, segments
from gradspectra_store.segments import READERS, opened

_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class DamagedPlace:
    """What a damaged block or segment held, and its id.

    level 0: numbers as recorded, above: buckets that can be made again from those below, None: a segment, of which
    `name` says the kind.
    """

    run: str
    attempt: int
    name: str
    level: int | None
    first_step: int
    last_step: int
    id: int = field(compare=False)


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


def _check(store: Store, seconds: float, looks: dict[sa.Table, Callable[[Any], DamagedPlace | None]]) -> Checked:
    until = time.monotonic() + seconds
    found: list[DamagedPlace] = []
    count = 0
    for table, look in looks.items():
        newest = sa.select(table).order_by(table.c.id.desc()).limit(_AT_ONCE)
        query = newest
        while True:
            with store.read() as conn:
                rows = conn.execute(query).all()
            found += [place for place in map(look, rows) if place is not None]
            count += len(rows)
            if len(rows) < _AT_ONCE:
                break
            query = newest.where(table.c.id < rows[-1].id)
            if time.monotonic() > until:
                return Checked(count, False, tuple(found))
    return Checked(count, True, tuple(found))


def _block(row: Any) -> DamagedPlace | None:
    try:
        _ = unpack_recorded(row.payload) if row.level == 0 else unpack_level(row.payload)
    except DamagedBlock:
        last = row.stop - 1 if isinstance(row.stop, int) else row.first  # the row itself may have suffered
        return DamagedPlace(row.run, row.attempt, row.name or "times", row.level, row.first, last, row.id)
    return None


def _segment(row: Any) -> DamagedPlace | None:
    return None if is_sound(row) else _place(row, f"{row.kind} (segment)")


def _derived_segment(row: Any) -> DamagedPlace | None:
    return None if is_sound(row) else _place(row, f"derived {row.kind} (segment)")


def _place(row: Any, name: str) -> DamagedPlace:
    return DamagedPlace(row.run, row.attempt, name, None, row.first_step, row.last_step, row.id)
