"""Mend what can be mended without guessing: buckets of sound numbers, segments that can be read again, wrong rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from gradspectra_core.blocks import pack_level

from gradspectra_store.block_rows import BlockRow, Source
from gradspectra_store.block_schema import blocks, compactions
from gradspectra_store.checking import DamagedPlace, is_sound
from gradspectra_store.compaction import claim_round, rounds_of
from gradspectra_store.damaged import damaged
from gradspectra_store.database import Store
from gradspectra_store.layer_tables import layer_count
from gradspectra_store.layer_values import layer_quantity
from gradspectra_store.levels import Levels, Quantity
from gradspectra_store.retired import coarse_stretches
from gradspectra_store.schema import derived_segments, metadata, segments


def take_back_notes(store: Store) -> int:
    """Let segments be compacted that were found damaged and can be read now; returns how many.

    A disk or a memory that fails at times gives the right bytes at others.
    """
    with store.read() as conn:
        sound = [
            (run, derived, segment)
            for run, derived, segment in conn.execute(sa.select(damaged.c.run, damaged.c.derived, damaged.c.segment))
            if _is_sound(conn, derived, segment)
        ]
    for run, derived, segment in sound:
        with store.write() as conn:
            of_segment = damaged.c.run == run, damaged.c.derived == derived, damaged.c.segment == segment
            conn.execute(sa.delete(damaged).where(*of_segment))
            conn.execute(sa.update(compactions).where(compactions.c.run == run).values(batch=0))
    return len(sound)


def put_right(store: Store, places: Iterable[DamagedPlace]) -> list[DamagedPlace]:
    """Let the rows of whole segments and blocks say again what their payloads and sessions say; returns which now do.

    What of a row can only be told to be wrong stays.
    """
    return [place for place in places if place.misfit and place.misfit.right and _put_right(store, place)]


def make_again(store: Store, places: Iterable[DamagedPlace]) -> set[int]:
    """Make damaged blocks of buckets again where all that they were made of is there; returns their ids."""
    return {place.id for place in places if place.level and place.misfit is None and _make_again(store, place.id)}


def _put_right(store: Store, place: DamagedPlace) -> bool:
    """As `put_right`; False where the run was compacted meanwhile, or another row stands where this one belongs."""
    assert place.misfit is not None
    table = metadata.tables[place.table]
    with store.read() as conn:
        rounds = rounds_of(conn, place.run)
    try:
        with store.write() as conn:
            if not claim_round(conn, place.run, rounds):
                return False
            done = conn.execute(sa.update(table).where(table.c.id == place.id).values(place.misfit.right)).rowcount
            conn.execute(sa.update(compactions).where(compactions.c.run == place.run).values(batch=0))
    except sa.exc.IntegrityError:
        return False
    return bool(done)


def _is_sound(conn: sa.Connection, derived: bool, segment: int) -> bool:
    table = derived_segments if derived else segments
    row = conn.execute(sa.select(table.c.kind, table.c.payload, table.c.checksum).where(table.c.id == segment)).first()
    return row is not None and is_sound(row)


def _make_again(store: Store, identity: int) -> bool:
    with store.read() as conn:
        row = conn.execute(sa.select(blocks).where(blocks.c.id == identity)).one_or_none()
        if row is None:
            return False
        rounds = rounds_of(conn, row.run)
        payload = _remade(conn, row)
    if payload is None:
        return False
    with store.write() as conn:
        if not claim_round(conn, row.run, rounds):
            return False
        conn.execute(sa.update(blocks).where(blocks.c.id == identity).values(payload=payload))
    return True


def _remade(conn: sa.Connection, row: Any) -> bytes | None:
    """The payload of a block of buckets, None where something that it was made of is not there any more."""
    source = Source(*(getattr(row, name) for name in Source._fields))
    of_block = BlockRow(*(getattr(row, name) for name in BlockRow.__slots__))
    quantity = Quantity(row.name, (row.name,), 1, last=True)
    coarse = []
    if row.kind == "layers":
        quantity = layer_quantity(row.name, layer_count(conn, row.run))
        coarse = coarse_stretches(conn, row.run, "layers", [row.name, *quantity.inputs], derived=row.derived)
    levels = Levels(conn, source, retired=[own for one in coarse for own in one.stretches])
    (level,) = levels.read([quantity], row.level, [of_block.stretch])
    if levels.damaged or len(level.numbers) != row.entries:
        return None
    return pack_level(row.level, level)
