"""Mend what can be mended without guessing: buckets of sound numbers, segments that can be read again, wrong rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa
from gradspectra_core.blocks import pack_level
from gradspectra_core.records import LayerBlock, SpectrumBlock

from gradspectra_store.block_rows import BlockRow, Source
from gradspectra_store.block_schema import blocks
from gradspectra_store.checking import DamagedPlace, is_sound
from gradspectra_store.compaction import claim_round, compact_anew, rounds_of
from gradspectra_store.damaged import DamagedSegment, damaged
from gradspectra_store.database import Store
from gradspectra_store.layer_tables import known_table, layer_count, read_table
from gradspectra_store.layer_values import layer_quantity
from gradspectra_store.levels import Levels
from gradspectra_store.names import add_names
from gradspectra_store.quantities import Quantity
from gradspectra_store.retired import coarse_stretches
from gradspectra_store.schema import derived_segments, metadata, segments
from gradspectra_store.segments import checksum_of, opened, pack_layers, unpack_spectra

LateMetrics = Callable[[SpectrumBlock, int], LayerBlock | None]
"""What can be derived of spectra by themselves; given them and the number of layers in their table."""


def take_back_notes(store: Store, late: LateMetrics) -> list[DamagedSegment]:
    """Let segments be compacted that were found damaged and can be read now; returns which.

    A disk or a memory that fails at times gives the right bytes at others. late: derives of spectra what was left out
    because they could not be read. What is derived of other segments depends on all before, and stays as it is.
    """
    with store.read() as conn:
        notes = [DamagedSegment(**row) for row in conn.execute(sa.select(damaged)).mappings()]
        sound = [note for note in notes if _is_sound(conn, note)]
    for note in sound:
        with store.write() as conn:
            place = {"run": note.run, "derived": note.derived, "segment": note.segment}
            gone = conn.execute(sa.delete(damaged).where(*(damaged.c[name] == own for name, own in place.items())))
            if not gone.rowcount:  # taken back by somebody else, or the run is gone
                continue
            if note.kind == "spectra" and not note.derived:
                _derive_late(conn, note, late)
            compact_anew(conn, note.run)
    return sound


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
            compact_anew(conn, place.run)
    except sa.exc.IntegrityError:
        return False
    return bool(done)


def _is_sound(conn: sa.Connection, note: DamagedSegment) -> bool:
    table = derived_segments if note.derived else segments
    columns = table.c.kind, table.c.payload, table.c.checksum, table.c.digest
    row = conn.execute(sa.select(*columns).where(table.c.id == note.segment)).first()
    if row is None or not is_sound(row):
        return False
    return row.digest is None or known_table(conn, note.run, row.digest) is not None


def _derive_late(conn: sa.Connection, note: DamagedSegment, late: LateMetrics) -> None:
    row = conn.execute(sa.select(segments).where(segments.c.id == note.segment)).one_or_none()
    if row is None:
        return
    block = late(opened(unpack_spectra, row.payload, row.checksum), len(read_table(conn, note.run, row.digest)))
    if block is None:
        return
    of_batch = derived_segments.c.run == note.run, derived_segments.c.batch == row.batch
    newest = conn.execute(sa.select(sa.func.max(derived_segments.c.part)).where(*of_batch)).scalar_one()
    payload = pack_layers(block)
    values = {"run": note.run, "kind": "layers", "batch": row.batch, "part": 0 if newest is None else newest + 1}
    values |= {"attempt": row.attempt, "digest": block.digest, "payload": payload, "checksum": checksum_of(payload)}
    values |= {"first_step": int(block.steps[0]), "last_step": int(block.steps[-1])}
    conn.execute(sa.insert(derived_segments).values(values))
    add_names(conn, note.run, "layer", block.statistics, derived=True)


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
    of_block = BlockRow(*(getattr(row, name) for name in BlockRow._fields))
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
