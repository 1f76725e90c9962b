"""Read segments and blocks once, to find those that are damaged, and those whose rows do not fit what is in them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from gradspectra_core.blocks import DamagedBlock, unpack_level, unpack_recorded
from gradspectra_core.pyramid import Level

from gradspectra_store.block_schema import blocks
from gradspectra_store.database import Store
from gradspectra_store.errors import StoreDamaged
from gradspectra_store.fitting import Known, Misfit, content_of, misfit_of_block, misfit_of_segment
from gradspectra_store.lost_segments import lost_beside
from gradspectra_store.missing import lost_below
from gradspectra_store.schema import derived_segments, segments
from gradspectra_store.segments import READERS, opened

GONE = "is gone"
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


def _check(store: Store, seconds: float, looks: dict[sa.Table, Callable[[Known, Any], list[DamagedPlace]]]) -> Checked:
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
                found += [place for row in rows for place in look(known, row)]
            count += len(rows)
            if len(rows) < _AT_ONCE:
                break
            query = newest.where(table.c.id < rows[-1].id)
            if time.monotonic() > until:
                return Checked(count, False, _told_once(found))
    return Checked(count, True, _told_once(found))


def _block(known: Known, row: Any) -> list[DamagedPlace]:
    misfit = None
    try:
        content = unpack_recorded(row.payload) if row.level == 0 else unpack_level(row.payload)
        if (misfit := misfit_of_block(known, row, content)) is None:
            lost = lost_below(known.conn, row, content) if isinstance(content, Level) else []
            return [_gone(row, *below) for below in lost]
    except DamagedBlock:
        pass
    right = {} if misfit is None else misfit.right
    first, stop = right.get("first", row.first), right.get("stop", row.stop)
    last = stop - 1 if isinstance(stop, int) else first  # the row itself may have suffered
    place = row.run, row.attempt, row.name or "times", row.level, first, last
    return [DamagedPlace(*place, row.id, blocks.name, misfit)]


def _told_once(found: list[DamagedPlace]) -> tuple[DamagedPlace, ...]:
    """Leave out what is gone only because the row that has it is damaged, and what was found twice."""
    rows: dict[tuple[Any, ...], list[DamagedPlace]] = {}
    for one in found:
        if not _is_gone(one) and isinstance(one.first_step, int):
            rows.setdefault((one.run, one.attempt, one.name, one.level), []).append(one)

    def hidden(gone: DamagedPlace) -> bool:
        own = rows.get((gone.run, gone.attempt, gone.name, gone.level), ())
        return any(one.first_step <= gone.last_step and one.last_step >= gone.first_step for one in own)

    return tuple(dict.fromkeys(one for one in found if not (_is_gone(one) and hidden(one))))


def _is_gone(one: DamagedPlace) -> bool:
    return one.misfit is not None and one.misfit.why == GONE


def _gone(row: Any, name: str, first: int, last: int) -> DamagedPlace:
    place = row.run, row.attempt, name or "times", 0, first, last
    return DamagedPlace(*place, row.id, blocks.name, Misfit(GONE, {}))


def _segment(known: Known, row: Any) -> list[DamagedPlace]:
    found = _of_segment(known, row, segments.name)
    if found or row.kind != "scalars":
        return found
    steps = row.first_step, row.last_step, row.id
    gone = Misfit(GONE, {})
    kinds = lost_beside(known.conn, row)
    return [
        DamagedPlace(row.run, row.attempt, f"{kind} (segment)", None, *steps, segments.name, gone) for kind in kinds
    ]


def _derived_segment(known: Known, row: Any) -> list[DamagedPlace]:
    return _of_segment(known, row, derived_segments.name)


def _of_segment(known: Known, row: Any, table: str) -> list[DamagedPlace]:
    misfit, kind = None, row.kind
    try:
        kind, content = content_of(row)
        if (misfit := misfit_of_segment(known, row, kind, content)) is None:
            return []
    except StoreDamaged:
        pass
    right = {} if misfit is None else misfit.right
    steps = right.get("first_step", row.first_step), right.get("last_step", row.last_step)
    name = f"{'derived ' if table == derived_segments.name else ''}{kind} (segment)"
    return [DamagedPlace(row.run, right.get("attempt", row.attempt), name, None, *steps, row.id, table, misfit)]
