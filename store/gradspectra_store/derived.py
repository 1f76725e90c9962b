"""What the worker stands on: who derives a run, what is still to derive, and the derived rows with their watermark."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.records import Batch, Columns, Int64, LayerBlock

from gradspectra_store.damaged import DamagedSegment
from gradspectra_store.errors import StoreDamaged
from gradspectra_store.layer_tables import read_table
from gradspectra_store.names import add_names
from gradspectra_store.runs import SILENT_SECONDS
from gradspectra_store.schema import cursors, derived_segments, runs, segments, sessions
from gradspectra_store.segments import (
    checksum_of,
    opened,
    pack_columns,
    pack_layers,
    unpack_layers,
    unpack_scalars,
    unpack_spectra,
)

PENDING_BYTES = 16 << 20
"""Batches of so many bytes are read to be derived together, so that wide models take no more memory than others."""

_delete_derived = sa.delete(derived_segments).where(
    derived_segments.c.run == sa.bindparam("of_run"),
    derived_segments.c.batch.between(sa.bindparam("first"), sa.bindparam("last")),
)


@dataclass(slots=True)
class Cursor:
    """How far a run is derived. batch: all batches up to this one; state: what the detectors remember, plain JSON."""

    batch: int
    attempt: int
    derived_step: int
    state: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """One batch as it was taken in. batch: with its layer table always filled in where it has layers or spectra.

    damaged: its segments that cannot be read back, left out of it; without that of its scalars it has no steps.
    """

    batch_number: int
    attempt: int
    session: str
    rank: int
    batch: Batch
    damaged: tuple[DamagedSegment, ...] = ()


def dirty_runs(conn: sa.Connection) -> list[str]:
    """Return the runs that have batches past their cursor, those waiting longest first."""
    query = sa.select(runs.c.id).join(cursors, cursors.c.run == runs.c.id).where(runs.c.last_batch > cursors.c.batch)
    return list(conn.execute(query.order_by(runs.c.updated_at, runs.c.id)).scalars())


def claim(conn: sa.Connection, run: str) -> Cursor | None:
    """Take the run for this transaction; None where another worker has it (and will look again) or it is gone."""
    query = sa.select(cursors).where(cursors.c.run == run).with_for_update(skip_locked=True)
    row = conn.execute(query).one_or_none()
    return None if row is None else Cursor(row.batch, row.attempt, row.derived_step, row.state)


def advance(conn: sa.Connection, run: str, cursor: Cursor) -> None:
    """Write the watermark, in the transaction that claimed it and saved what it speaks of."""
    values = {
        "batch": cursor.batch,
        "attempt": cursor.attempt,
        "derived_step": cursor.derived_step,
        "state": cursor.state,
    }
    conn.execute(sa.update(cursors).where(cursors.c.run == run).values(values))


def pending(
    conn: sa.Connection,
    run: str,
    after_batch: int,
    limit: int,
    now: float | None = None,
    *,
    steps: int | None = None,
) -> list[StoredBatch]:
    """Return up to `limit` batches after one, in order, up to the first whose steps may not be derived yet.

    A batch may be derived when every live session of its attempt has completed its steps. Live are sessions that
    have sent a batch, have not ended and were heard within 60 s. steps: read no further than the batch with which
    so many steps are reached. Neither is more read than about PENDING_BYTES, and one batch.
    """
    numbers = _ready(conn, run, after_batch, limit, time.time() if now is None else now, steps)
    if not numbers:
        return []
    if len(numbers) > 1:
        numbers = _bounded(conn, run, numbers)
    wanted = segments.c.batch.between(numbers[0], numbers[-1])
    found: dict[int, dict[str, sa.Row[Any]]] = {number: {} for number in numbers}
    for row in conn.execute(sa.select(segments).where(segments.c.run == run, wanted)):
        if row.batch in found and row.kind in _READ:  # a disk that changes either holds up no other batch
            found[row.batch][row.kind] = row
    return [_stored(conn, run, rows) for rows in found.values()]


def _bounded(conn: sa.Connection, run: str, numbers: list[int]) -> list[int]:
    """The first of these batches, up to the one with which PENDING_BYTES are reached."""
    size = sa.func.sum(sa.func.length(segments.c.payload))
    query = sa.select(size).where(segments.c.run == run, segments.c.batch.between(numbers[0], numbers[-1]))
    sizes = conn.execute(query.group_by(segments.c.batch).order_by(segments.c.batch)).scalars()
    reached = np.cumsum([int(one) for one in sizes])
    return numbers[: int(np.searchsorted(reached, PENDING_BYTES)) + 1]


def behind(conn: sa.Connection, run: str, now: float | None = None) -> bool:
    """Say whether the run has a batch past its cursor that may be derived now."""
    query = sa.select(cursors.c.batch).where(cursors.c.run == run)
    done = conn.execute(query).scalar_one_or_none()
    return done is not None and bool(_ready(conn, run, done, 1, time.time() if now is None else now))


@dataclass(frozen=True, slots=True)
class DerivedBatch:
    """What was derived from one batch. columns: steps (S,) and run-level series over them; layer_metrics: blocks of
    layer metrics, each over its own steps and layer table.
    """

    attempt: int
    batch_number: int
    columns: tuple[Int64, Columns] | None
    layer_metrics: Sequence[LayerBlock] = ()


def save_derived(conn: sa.Connection, run: str, derived: Sequence[DerivedBatch]) -> None:
    """Save what was derived from batches that follow each other, in place of what was saved for them before."""
    if not derived:
        return
    span = {"first": derived[0].batch_number, "last": derived[-1].batch_number}
    conn.execute(_delete_derived, {"of_run": run, **span})
    series: dict[str, None] = {}
    statistics: dict[str, None] = {}
    rows: list[dict[str, Any]] = []
    for one in derived:
        common = {"run": run, "batch": one.batch_number, "attempt": one.attempt}
        own: list[dict[str, Any]] = []
        if one.columns is not None and len(one.columns[0]):
            own.append(
                {"kind": "scalars", "digest": None, **_span(one.columns[0]), **_packed(pack_columns(*one.columns))}
            )
            series.update(dict.fromkeys(one.columns[1].names))
        for block in one.layer_metrics:
            if len(block.steps):
                own.append(
                    {"kind": "layers", "digest": block.digest, **_span(block.steps), **_packed(pack_layers(block))}
                )
                statistics.update(dict.fromkeys(block.statistics + block.count_statistics))
        rows += [common | row | {"part": part} for part, row in enumerate(own)]
    if series:
        add_names(conn, run, "run", series, derived=True)
    if statistics:
        add_names(conn, run, "layer", statistics, derived=True)
    if rows:
        conn.execute(sa.insert(derived_segments), rows)


def _span(steps: Int64) -> dict[str, int]:
    return {"first_step": int(steps.min()), "last_step": int(steps.max())}


def _packed(payload: bytes) -> dict[str, Any]:
    return {"payload": payload, "checksum": checksum_of(payload)}


def _ready(
    conn: sa.Connection, run: str, after: int, limit: int, now: float, most_steps: int | None = None
) -> list[int]:
    columns = segments.c.batch, segments.c.attempt, segments.c.first_step, segments.c.last_step
    of_run = segments.c.run == run, segments.c.kind == "scalars", segments.c.batch > after
    rows = conn.execute(sa.select(*columns).where(*of_run).order_by(segments.c.batch).limit(limit)).all()
    if not rows:
        return []
    live = (
        sa.select(sessions.c.attempt, sa.func.min(sessions.c.complete_through).label("through"))
        .where(sessions.c.run == run, sessions.c.last_sequence > 0, sessions.c.ended_at.is_(None))
        .where(sessions.c.last_seen > now - SILENT_SECONDS)
        .group_by(sessions.c.attempt)
    )
    bounds = {row.attempt: row.through for row in conn.execute(live)}
    ready: list[int] = []
    steps = 0
    for batch, attempt, first_step, last_step in rows:
        if last_step > bounds.get(attempt, last_step) or (most_steps is not None and steps >= most_steps):
            break
        ready.append(batch)
        steps += last_step - first_step + 1
    return ready


_READ: dict[str, Callable[[bytes], Any]] = {
    "scalars": unpack_scalars,
    "layers": unpack_layers,
    "spectra": unpack_spectra,
}
_NO_STEPS = (
    np.empty(0, np.int64),
    np.empty(0),
    Columns((), np.empty((0, 0)), np.empty((0, 0), np.bool_)),
    Columns((), np.empty((0, 0), np.int64), np.empty((0, 0), np.bool_)),
)


def _stored(conn: sa.Connection, run: str, rows: dict[str, sa.Row[Any]]) -> StoredBatch:
    row = rows["scalars"]
    read: dict[str, Any] = {}
    damaged = []
    table = None
    for kind, own in rows.items():
        try:
            found = opened(_READ[kind], own.payload, own.checksum)
            table = table if own.digest is None else read_table(conn, run, own.digest)
            read[kind] = found
        except StoreDamaged:
            place = kind, own.attempt, own.rank, own.first_step, own.last_step
            damaged.append(DamagedSegment(run, False, own.id, *place))
    steps, times, scalars, counts = read.get("scalars", _NO_STEPS)
    layers = read.get("layers") if "scalars" in read else None  # they belong to steps that it tells of
    spectra = read.get("spectra")
    block = layers or spectra
    batch = Batch(
        session=row.session,
        sequence=row.sequence,
        complete_through=row.last_step,
        steps=steps,
        times=times,
        scalars=scalars,
        counts=counts,
        layer_table=None if block is None else table,
        layers=layers,
        spectra=spectra,
    )
    return StoredBatch(row.batch, row.attempt, row.session, row.rank, batch, tuple(damaged))
