"""Take in one batch: checked against its session, numbered within its run, stored whole or not at all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from gradspectra_core.records import Batch

from gradspectra_store import sparkline
from gradspectra_store.bitmaps import members_of
from gradspectra_store.errors import BadBatch, SequenceGap, UnknownRun, UnknownSession
from gradspectra_store.layer_tables import KnownTable, known_table, note_spectra, store_table
from gradspectra_store.names import add_names
from gradspectra_store.postgres_connections import together
from gradspectra_store.prepared import Prepared
from gradspectra_store.schema import gaps, layer_tables, runs, segments, sessions
from gradspectra_store.segments import checksum_of, kinds_beside, pack_layers, pack_scalars, pack_spectra

MAX_STEP = 2**53
_TwoNames = tuple[tuple[str, ...], tuple[str, ...]]
TOUCH_SECONDS = 1.0
"""`updated_at` of a run is written at the first batch that comes so long after it: each time its index moves too."""


class _State(NamedTuple):
    """Where a session and its run stand, and what is known of the layer table that the batch speaks of."""

    attempt: int
    rank: int
    last_sequence: int
    last_step: int
    complete_through: int
    names_digest: str
    ended_at: float | None
    run_attempt: int
    run_last_step: int
    state: str
    updated_at: float
    last_batch: int
    sparkline: str
    stop_at_step: int | None
    table_size: int | None
    table_spectra: bytes | None


_COLUMNS = {
    "run_attempt": runs.c.attempt,
    "run_last_step": runs.c.last_step,
    "table_size": layer_tables.c.size,
    "table_spectra": layer_tables.c.spectra,
    **{name: runs.c[name] for name in ("state", "updated_at", "last_batch", "sparkline", "stop_at_step")},
}
_state_query = Prepared(
    sa.select(*(_COLUMNS[name] if name in _COLUMNS else sessions.c[name] for name in _State._fields))
    .select_from(
        runs.join(sessions, sessions.c.run == runs.c.id).outerjoin(
            layer_tables,
            sa.and_(layer_tables.c.run == runs.c.id, layer_tables.c.digest == sa.bindparam("of_digest")),
        )
    )
    .where(runs.c.id == sa.bindparam("of_run"), sessions.c.id == sa.bindparam("of_session"))
    .with_for_update(key_share=True, of=(runs, sessions))
)
_advance_run = Prepared(
    sa.update(runs)
    .where(runs.c.id == sa.bindparam("of_run"))
    .values({name: sa.bindparam(name) for name in ("last_batch", "last_step", "sparkline")})
)
_touch_run = Prepared(
    sa.update(runs)
    .where(runs.c.id == sa.bindparam("of_run"))
    .values({name: sa.bindparam(name) for name in ("updated_at", "state")})
)
_advance_session = Prepared(
    sa.update(sessions)
    .where(sessions.c.id == sa.bindparam("of_session"))
    .values(
        {
            name: sa.bindparam(name)
            for name in ("last_sequence", "last_step", "complete_through", "names_digest", "last_seen")
        }
    )
)
_insert_segment = Prepared(
    sa.insert(segments)
    .values({column.name: sa.bindparam(column.name) for column in segments.c if column.name != "id"})
    .inline()
)


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of a batch. status: "stored" or "repeated"; batch: its number in the run (of a repeated one the
    run's newest); last_step: the run's; stop_at_step: the step at which the session is asked to stop, if it is.
    """

    status: str
    batch: int
    last_step: int
    stop_at_step: int | None = None


def ingest(conn: sa.Connection, run: str, batch: Batch, now: float) -> Ingested:
    """Store one batch in the caller's write transaction.

    A batch whose (session, sequence) was stored before changes nothing. Raises SequenceGap with the number
    expected, UnknownRun, UnknownSession, and BadBatch naming the field that does not fit what the run has; after
    any of these the transaction must be rolled back, as `Store.write` does. now: seconds since 1970, the server's.
    """
    digest = _digest_of(batch)
    key = {"of_run": run, "of_session": batch.session, "of_digest": digest or ""}
    found = _state_query.rows(conn, key)
    if not found:
        raise _unknown(conn, run, batch.session)
    state = _State(*found[0])
    stop = state.stop_at_step if state.attempt == state.run_attempt else None
    if batch.sequence <= state.last_sequence:
        return Ingested("repeated", state.last_batch, state.run_last_step, stop)
    if batch.sequence != state.last_sequence + 1:
        raise SequenceGap(state.last_sequence + 1, batch.sequence, state.last_step)
    _check_steps(batch, state)
    if digest is not None:
        _check_layers(conn, run, batch, digest, state)
    number = state.last_batch + 1
    names_digest = _store_names(conn, run, batch, state.names_digest)
    with together(conn):
        last_step = _move_run(conn, run, batch, state, now)
        _move_session(conn, batch, state, names_digest, now)
        for row in _rows(run, batch, state, number):
            _insert_segment.run(conn, row)
    _store_gaps(conn, run, batch, state.attempt)
    return Ingested("stored", number, last_step, stop)


def _unknown(conn: sa.Connection, run: str, session: str) -> UnknownRun | UnknownSession:
    known = conn.execute(sa.select(runs.c.id).where(runs.c.id == run)).one_or_none()
    return UnknownRun(run) if known is None else UnknownSession(run, session)


def _check_steps(batch: Batch, state: _State) -> None:
    if len(batch.steps) and batch.steps[0] <= state.last_step:
        raise BadBatch(
            "steps", f"must lie above step {state.last_step}, the last of this session, got {batch.steps[0]}"
        )
    if len(batch.steps) and batch.steps[-1] > MAX_STEP:
        raise BadBatch("steps", f"must be at most {MAX_STEP}, got {batch.steps[-1]}")
    if batch.spectra is not None and len(batch.spectra.step) and batch.spectra.step.max() > MAX_STEP:
        raise BadBatch("spectra.step", f"must be at most {MAX_STEP}, got {batch.spectra.step.max()}")


def _digest_of(batch: Batch) -> str | None:
    """Digest of the layer table that the batch speaks of; its own table need not be used yet."""
    if batch.layers is not None:
        return batch.layers.digest
    if batch.spectra is not None:
        return batch.spectra.digest
    return None if batch.layer_table is None else batch.layer_table.digest


def _check_layers(conn: sa.Connection, run: str, batch: Batch, digest: str, state: _State) -> None:
    """See that layers and spectra fit the table, which is stored where it is new."""
    table = None if state.table_size is None else KnownTable(state.table_size, state.table_spectra or b"")
    own = batch.layer_table
    if own is not None and (table is None or own.digest != digest) and known_table(conn, run, own.digest) is None:
        store_table(conn, run, own, _span(batch.steps, state)["first_step"])
    if table is None:  # stored just now, perhaps by another session for which this one waited
        table = known_table(conn, run, digest)
    kind = "spectra" if batch.layers is None else "layers"
    if table is None:
        raise BadBatch(f"{kind}.digest", f"names no layer table of this run, send it in layer_table; got {digest!r}")
    if batch.layers is not None and batch.layers.values.shape[2] != table.size:
        found = batch.layers.values.shape[2]
        raise BadBatch("layers.values", f"must be of the {table.size} layers of the table, got {found}")
    if batch.spectra is not None and len(batch.spectra.layer):
        if batch.spectra.digest != digest:
            raise BadBatch(
                "spectra.digest", "must be that of the layers of the batch; send other spectra by themselves"
            )
        highest = batch.spectra.layer.max()
        if highest >= table.size:
            raise BadBatch("spectra.layer", f"must be below {table.size}, the number of layers, got {highest}")
        note_spectra(conn, run, digest, table, members_of(batch.spectra.layer))


def _rows(run: str, batch: Batch, state: _State, number: int) -> list[dict[str, Any]]:
    common = {
        "run": run,
        "batch": number,
        "attempt": state.attempt,
        "rank": state.rank,
        "session": batch.session,
        "sequence": batch.sequence,
    }
    rows: list[dict[str, Any]] = []  # the long first: the short one then mostly lies on the same new page of the file
    beside = kinds_beside(batch)
    if batch.layers is not None and "layers" in beside:
        layers = {"digest": batch.layers.digest, "members": None, "payload": pack_layers(batch.layers)}
        rows.append({"kind": "layers", **_span(batch.layers.steps, state), **layers})
    if batch.spectra is not None and "spectra" in beside:
        members = members_of(batch.spectra.layer)
        spectra = {"digest": batch.spectra.digest, "members": members, "payload": pack_spectra(batch.spectra)}
        rows.append({"kind": "spectra", **_span(np.sort(batch.spectra.step), state), **spectra})
    scalars: dict[str, Any] = {"digest": None, "members": None, "payload": pack_scalars(batch)}
    rows.append({"kind": "scalars", **_span(batch.steps, state), **scalars})
    return [common | row | {"checksum": checksum_of(row["payload"])} for row in rows]


def _span(steps: np.ndarray[Any, np.dtype[np.int64]], state: _State) -> dict[str, int]:
    """steps: rising."""
    if not len(steps):  # a batch of gaps alone lies where its session was
        return {"first_step": state.last_step, "last_step": state.last_step}
    return {"first_step": int(steps[0]), "last_step": int(steps[-1])}


def _store_gaps(conn: sa.Connection, run: str, batch: Batch, attempt: int) -> None:
    if batch.gaps:
        common = {"run": run, "attempt": attempt, "session": batch.session}
        rows = [{"first": gap.first, "last": gap.last, "what": gap.what, "reason": gap.reason} for gap in batch.gaps]
        conn.execute(sa.insert(gaps), [common | row for row in rows])


def _store_names(conn: sa.Connection, run: str, batch: Batch, known: str) -> str:
    """Note which series and statistics the run has; a session that sends what it sent before costs nothing."""
    series = batch.scalars.names, batch.counts.names
    layers = ((), ()) if batch.layers is None else (batch.layers.statistics, batch.layers.count_statistics)
    if not any((*series, *layers)):
        return known
    digest = _names_digest(series, layers)
    if digest != known:
        add_names(conn, run, "run", series[0], derived=False, counts=series[1])
        add_names(conn, run, "layer", layers[0], derived=False, counts=layers[1])
    return digest


@lru_cache(maxsize=64)
def _names_digest(series: _TwoNames, layers: _TwoNames) -> str:
    return hashlib.md5(repr((series, layers)).encode(), usedforsecurity=False).hexdigest()


def _move_run(conn: sa.Connection, run: str, batch: Batch, state: _State, now: float) -> int:
    """Move the run on to this batch, numbered after its last one, whose row the state was read with a lock on.

    Returns the run's last step.
    """
    last_step, text, name = state.run_last_step, state.sparkline, state.state
    if state.attempt == state.run_attempt:  # else a spool of an older attempt, sent late
        if len(batch.steps):
            last_step = max(last_step, int(batch.steps[-1]))
        if name == "lost" and state.ended_at is None:
            name = "running"
        if state.rank == 0 and not sparkline.SERIES.isdisjoint(batch.scalars.names):
            text = sparkline.to_text(sparkline.with_batch(sparkline.from_text(text), batch.steps, batch.scalars))
    values = {"last_batch": state.last_batch + 1, "last_step": last_step, "sparkline": text}
    _advance_run.run(conn, {"of_run": run} | values)
    if name != state.state or not 0 <= now - state.updated_at < TOUCH_SECONDS:
        _touch_run.run(conn, {"of_run": run, "updated_at": now, "state": name})
    return last_step


def _move_session(conn: sa.Connection, batch: Batch, state: _State, names_digest: str, now: float) -> None:
    values = {
        "last_sequence": batch.sequence,
        "last_step": int(batch.steps[-1]) if len(batch.steps) else state.last_step,
        "complete_through": max(batch.complete_through, state.complete_through),
        "names_digest": names_digest,
        "last_seen": now,
    }
    _advance_session.run(conn, {"of_session": batch.session} | values)
