"""Read blocks once, to find those whose checksum is wrong."""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa
from gradspectra_core.blocks import DamagedBlock, unpack_level, unpack_recorded

from gradspectra_store.block_schema import blocks
from gradspectra_store.database import Store

_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class DamagedPlace:
    """What a damaged block held. level 0: numbers as recorded, else buckets that can be made again from those below."""

    run: str
    attempt: int
    name: str
    level: int
    first_step: int
    last_step: int


@dataclass(frozen=True, slots=True)
class Checked:
    """How many blocks were read, whether that were all, and which are damaged."""

    blocks: int
    all: bool
    damaged: tuple[DamagedPlace, ...]


def check_blocks(store: Store, seconds: float) -> Checked:
    """Read blocks, the newest first, for at most about so many seconds."""
    until = time.monotonic() + seconds
    names = ("id", "run", "attempt", "name", "level", "first", "stop", "payload")
    newest = sa.select(*(blocks.c[name] for name in names)).order_by(blocks.c.id.desc()).limit(_AT_ONCE)
    found: list[DamagedPlace] = []
    count, below = 0, None
    while True:
        with store.read() as conn:
            rows = conn.execute(newest if below is None else newest.where(blocks.c.id < below)).all()
        for row in rows:
            try:
                _ = unpack_recorded(row.payload) if row.level == 0 else unpack_level(row.payload)
            except DamagedBlock:
                last = row.stop - 1 if isinstance(row.stop, int) else row.first  # the row itself may have suffered
                place = row.run, row.attempt, row.name or "times", row.level, row.first, last
                found.append(DamagedPlace(*place))
        count += len(rows)
        if len(rows) < _AT_ONCE:
            return Checked(count, True, tuple(found))
        below = rows[-1].id
        if time.monotonic() > until:
            return Checked(count, False, tuple(found))
