"""Batches made again of what is stored of an attempt, to be derived another time: from blocks and from segments alike.

Where blocks begin and end, and where batches did, makes no difference: it does not matter where a stream is cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.blocks import Recorded
from gradspectra_core.records import Batch, Bool, Columns, Int64, LayerBlock

from gradspectra_store.errors import StoreDamaged
from gradspectra_store.layer_tables import RunLayers, run_layers, run_tables
from gradspectra_store.names import known_names
from gradspectra_store.next_steps import next_step
from gradspectra_store.recorded import read_recorded, read_recorded_layers
from gradspectra_store.schema import segments
from gradspectra_store.segments import opened, unpack_spectra
from gradspectra_store.times import read_times

STEPS, CHECKPOINT = 250, 1000
"""A batch that is made again has so many steps at most, and none has steps on both sides of a multiple of the other:
states are then kept at the multiples themselves."""

WINDOW_STEPS, WINDOW_BYTES = 8192, 16 << 20
"""So many steps are read at a time, fewer of a wide model."""

_NO_COLUMNS: dict[Any, Any] = {}


class Tables:
    """Which layer table each step of an attempt spoke of: blocks know of layers alone, in the order of the run's.

    One that lacks layers of which there are numbers gives way to the smallest that has them all, the newest of these;
    and one to another that came just then, if that is not the same with layers besides of which there are no numbers.
    """

    def __init__(self, conn: sa.Connection, run: str) -> None:
        self.layers: RunLayers = run_layers(conn, run)
        count = len(self.layers.layers)
        self._since: dict[str, int] = {}
        self._has: dict[str, Bool] = {}
        self.places: dict[str, Int64] = {}
        for digest, table in run_tables(conn, run).items():
            own = self.layers.places[digest]
            self.places[digest] = np.arange(len(table.table)) if own is None else own
            self._since[digest] = table.since_step
            self._has[digest] = np.isin(np.arange(count), self.places[digest])
        self._current: str | None = None
        self._last = 0

    def spoken_of(self, steps: Int64, there: Bool) -> list[str]:
        """Return the digest of the table of each of the steps (T,), which come in order. there: (T, L)."""
        found = []
        for step, row in zip(steps.tolist(), there, strict=True):
            if self._current is None or not self._fits(self._current, row):
                self._current = self._smallest(row)
            else:
                begun = [one for one, since in self._since.items() if self._last < since <= step]
                fewer = [one for one in begun if self._fits(one, row) and not self._fits(one, self._has[self._current])]
                self._current = [self._current, *fewer][-1]
            found.append(self._current)
            self._last = step
        return found

    def _fits(self, digest: str, row: Bool) -> bool:
        return not (row & ~self._has[digest]).any()

    def _smallest(self, row: Bool) -> str:
        fitting = [one for one in self._has if self._fits(one, row)]
        if not fitting:
            raise StoreDamaged("a table of a run's layers is gone: what was recorded of them cannot be told apart")
        return min(reversed(fitting), key=lambda one: int(self._has[one].sum()))


def next_window(conn: sa.Connection, run: str, attempt: int, after: int) -> tuple[int, int] | None:
    """Return the range [first, stop) of steps to read next, from `after` on; None where an attempt has no more."""
    first = next_step(conn, run, "scalars", attempt, after)
    if first is None:
        return None
    names = [
        len([1 for derived in known_names(conn, run, scope).values() if not derived]) for scope in ("run", "layer")
    ]
    size = 8 * names[0] + 8 * names[1] * len(run_layers(conn, run).layers)
    return first, first + max(min(WINDOW_STEPS, WINDOW_BYTES // max(size, 1)), STEPS)


def rebuilt(conn: sa.Connection, run: str, attempt: int, first: int, stop: int, tables: Tables) -> Iterator[Batch]:
    """Give what rank 0 recorded at the steps in [first, stop) of an attempt, as batches, without spectra.

    Their session and sequence are for the caller to fill in. What cannot be read back is passed over: steps of which
    the times are lost as a whole, else the numbers that are. tables: those of the run, the same for an attempt's whole
    walk.
    """
    times = read_times(conn, run, first, stop, attempt)
    names = [name for name, derived in known_names(conn, run, "run").items() if not derived]
    scalars = read_recorded(conn, run, names, first, stop, attempt).parts
    layers = _layers(conn, run, attempt, first, stop, tables)
    there = _union([part.steps for part in layers.values()])
    there = there[np.isin(there, times.steps)]
    spoken = tables.spoken_of(there, _present(layers, there, len(tables.layers.layers))) if len(there) else []
    digests = dict(zip(there.tolist(), spoken, strict=True))
    for begin, end in _cuts(times.steps, digests):
        steps = times.steps[begin:end]
        own = there[(there >= steps[0]) & (there <= steps[-1])]
        digest = digests[int(own[0])] if len(own) else None
        yield Batch(
            session="",
            sequence=0,
            complete_through=int(steps[-1]),
            steps=steps,
            times=times.seconds[begin:end],
            scalars=_columns(scalars, steps, np.dtype(np.float64)),
            counts=_columns(scalars, steps, np.dtype(np.int64)),
            layers=None if digest is None else _block(layers, own, digest, tables.places[digest]),
        )


def spectra_of(
    conn: sa.Connection, run: str, attempt: int, steps: tuple[int, int], batches: tuple[int, int]
) -> Iterator[tuple[int, Batch]]:
    """Give the spectra of all ranks of an attempt, each with its rank, as batches.

    steps: that they end at, [first, stop). batches: that they came in, after one and up to another. Those that cannot
    be read back are passed over.
    """
    columns = [segments.c[name] for name in ("id", "rank", "payload", "checksum")]
    of_attempt = segments.c.run == run, segments.c.kind == "spectra", segments.c.attempt == attempt
    ends = segments.c.last_step >= steps[0], segments.c.last_step < steps[1]
    came = segments.c.batch > batches[0], segments.c.batch <= batches[1]
    for row in conn.execute(sa.select(*columns).where(*of_attempt, *ends, *came).order_by(segments.c.batch)):
        try:
            yield row.rank, replace(batch_of_nothing(), spectra=opened(unpack_spectra, row.payload, row.checksum))
        except StoreDamaged:
            continue


def batch_of_nothing() -> Batch:
    """Return a batch without steps."""
    none = np.empty((0, 0), np.bool_)
    scalars, counts = Columns((), np.empty((0, 0)), none), Columns((), np.empty((0, 0), np.int64), none)
    return Batch("", 0, 0, np.empty(0, np.int64), np.empty(0), scalars, counts)


def _layers(conn: sa.Connection, run: str, attempt: int, first: int, stop: int, tables: Tables) -> dict[str, Recorded]:
    """By statistic, with a row for each of the run's layers; those without numbers here are left out."""
    names = [name for name, derived in known_names(conn, run, "layer").items() if not derived]
    layers = [layer.name for layer in tables.layers.layers]
    found = read_recorded_layers(conn, run, names, layers, first, stop, attempt).parts if layers else _NO_COLUMNS
    return {name: part for name, part in found.items() if len(part.steps)}


def _union(steps: Sequence[Int64]) -> Int64:
    return np.unique(np.concatenate(steps)) if steps else np.empty(0, np.int64)


def _present(layers: dict[str, Recorded], steps: Int64, rows: int) -> Bool:
    """Which layers (T, L) have any number at the steps (T,)."""
    found = np.zeros((len(steps), rows), np.bool_)
    for part in layers.values():
        here = np.isin(part.steps, steps)
        at = np.searchsorted(steps, part.steps[here])
        found[at] |= True if part.present is None else part.present[:, here].T
    return found


def _cuts(steps: Int64, digests: dict[int, str]) -> Iterator[tuple[int, int]]:
    """Where batches begin and end among the steps: not long, of one table, on one side of checkpoints."""
    begin = 0
    digest: str | None = None
    for at, step in enumerate(steps.tolist()):
        own = digests.get(step)
        apart = (step - 1) // CHECKPOINT != (int(steps[begin]) - 1) // CHECKPOINT
        if at > begin and (at - begin >= STEPS or apart or (own is not None and digest is not None and own != digest)):
            yield begin, at
            begin, digest = at, None
        digest = own or digest
    if begin < len(steps):
        yield begin, len(steps)


def _columns(parts: dict[str, Recorded], steps: Int64, dtype: np.dtype[Any]) -> Columns:
    """The series of a type that have numbers at some of the steps (S,)."""
    found = {name: _at(part, steps) for name, part in parts.items() if part.values.dtype == dtype}
    found = {name: own for name, own in found.items() if own[1].any()}
    values, present = np.zeros((len(found), len(steps)), dtype), np.zeros((len(found), len(steps)), np.bool_)
    for row, own in enumerate(found.values()):
        values[row], present[row] = own[0][0], own[1][0]
    return Columns(tuple(found), values, present)


def _at(part: Recorded, steps: Int64) -> tuple[Any, Bool]:
    """Values and presence, both (R, S), at the steps."""
    values = np.zeros((part.values.shape[0], len(steps)), part.values.dtype)
    present = np.zeros(values.shape, np.bool_)
    here = np.isin(part.steps, steps)
    at = np.searchsorted(steps, part.steps[here])
    there = np.ones((values.shape[0], len(at)), np.bool_) if part.present is None else part.present[:, here]
    values[:, at] = np.where(there, part.values[:, here], 0)
    present[:, at] = there
    return values, present


def _block(layers: dict[str, Recorded], steps: Int64, digest: str, places: Int64) -> LayerBlock:
    own: dict[type, dict[str, tuple[Any, Bool]]] = {np.float32: {}, np.int64: {}}
    for name, part in layers.items():
        numbers, here = _at(part, steps)
        if here.any():
            own[np.int64 if part.values.dtype == np.int64 else np.float32][name] = numbers[places].T, here[places].T
    shape = len(steps), len(places)
    arrays: list[Any] = []
    for dtype, found in own.items():
        arrays.append(np.array([one for one, _ in found.values()], dtype).reshape(len(found), *shape))
        arrays.append(np.array([there for _, there in found.values()], np.bool_).reshape(len(found), *shape))
    values, present, counts, counts_present = arrays
    names, count_names = tuple(own[np.float32]), tuple(own[np.int64])
    return LayerBlock(digest, steps, names, values, present, count_names, counts, counts_present)
