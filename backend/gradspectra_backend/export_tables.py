"""Every recorded number of a run as tables, read a range of steps at a time: series, layer values and spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from gradspectra_core.records import SPECTRUM_OF, Bool, Float64, Int64
from gradspectra_core.statistics import METRICS, RUN_METRICS, SCALARS, STATISTICS
from gradspectra_core.views import LayerSeries, Spectrum
from gradspectra_store import Store, read, run_views
from gradspectra_store.names import known_names
from gradspectra_store.stretches import Stretch
from sqlalchemy import Connection

from gradspectra_backend.problems import Problem

Kind = Literal["integer", "number", "text", "integers", "numbers"]
"""Of one cell; the last two are lists."""

VALUES_AT_ONCE = 1 << 16
"""About so many numbers are read at a time where each step was recorded."""
MOST_GROWTH = 16
"""Ranges grow by up to so much where few steps were recorded: at worst so many times the numbers are then read."""
MOST_STEPS = 1 << 16
SPECTRUM_VALUES = 200
"""Numbers that a spectrum counts as."""
PARTS = ("mean", "min", "max")
"""Of a bucket of several steps, where only such are left."""
PLACE: dict[str, Kind] = {"step": "integer", "attempt": "integer"}
SERIES: dict[str, Kind] = {**PLACE, "time": "number"}
LAYER: dict[str, Kind] = {**PLACE, "layer": "text", "role": "text", "depth": "integer"}
SPECTRUM: dict[str, Kind] = {
    **PLACE,
    **dict.fromkeys(("layer", "of", "method"), "text"),
    **dict.fromkeys(("rows", "columns", "k90", "k99"), "integer"),
    **dict.fromkeys(("nuclear", "frobenius_sq", "operator", "fourth", "entropy"), "number"),
    "index": "integers",
    "singular_values": "numbers",
}


@dataclass(frozen=True, slots=True)
class Cells:
    """Some cells of one column: values (N,), a list for text and lists; present (N,), None where all are there."""

    values: Any
    present: Bool | None = None

    def __len__(self) -> int:
        return len(self.values)


Piece = list[Cells]
"""Cells of all columns, all of one length."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns by name with what their cells are, and the rows, in pieces; none is empty."""

    columns: dict[str, Kind]
    pieces: Iterable[Piece]


@dataclass(frozen=True, slots=True)
class Span:
    """Steps [first, stop) that one attempt speaks for."""

    attempt: int
    first: int
    stop: int


Read = Callable[[Connection, Span], tuple[Piece, int]]
"""Reads the rows of one attempt's steps: the piece, and how many numbers it took."""


def spans_of(conn: Connection, run: str, attempt: int | None, start: int | None, stop: int | None) -> list[Span]:
    """Return which attempt speaks for which steps of [start, stop) now, in order of steps, up to the last recorded.

    What a newer attempt hides later on does not change them: an export never mixes two trajectories. attempt: that
    one by itself. Raises UnknownRun, and Problem 422 for an attempt that the run does not have or a range that goes
    backwards.
    """
    first, end = start or 0, np.inf if stop is None else stop
    if first > end:
        raise Problem("bad-request", f"stop: must not lie before start, {first}, got {stop}", field="stop")
    attempts = run_views.list_attempts(conn, run)
    if attempt is not None and attempt not in {one["attempt"] for one in attempts}:
        last = attempts[-1]["attempt"]
        raise Problem("bad-request", f"attempt: this run has attempts 1 to {last}, got {attempt}", field="attempt")
    spans = []
    for one in attempts:
        low, high = (one["first_step"], one["hidden_from"]) if attempt is None else (0, None)
        if attempt in (None, one["attempt"]):
            high = one["last_step"] + 1 if high is None else min(high, one["last_step"] + 1)
            spans.append(Span(one["attempt"], max(low, first), int(min(high, end))))
    return sorted((span for span in spans if span.first < span.stop), key=lambda span: span.first)


def series_table(
    conn: Connection, store: Store, run: str, spans: Sequence[Span], names: Sequence[str], skip_damaged: bool = False
) -> Table:
    """One row per recorded step: `step`, `attempt`, `time` (seconds since 1970), and a column per series.

    names: none for all there are, else only steps at which one of them has a value come. A series that is called
    `step` stands under `step_value`. Raises Problem 422 for a name that neither the run nor
    the registry has, and with its piece 500 for steps that cannot be read back, unless they are to be skipped.
    """
    known = read.series_names(conn, run)
    for name in names:
        if name not in known and name not in SCALARS and name not in RUN_METRICS:
            remedy = f"The run has {', '.join(known) or 'none yet'}."
            raise Problem("bad-request", f"names: there is no series {name!r}", field="names", remedy=remedy)
    chosen = list(dict.fromkeys(names)) or known

    def rows(conn: Connection, span: Span) -> tuple[Piece, int]:
        steps = span.stop - span.first
        series = read.read_series(conn, run, chosen, span.first, span.stop, steps, span.attempt)
        times = read.read_times(conn, run, span.first, span.stop, span.attempt)
        _see_to((*series.damaged, *times.damaged), skip_damaged)
        x = np.asarray(series.x, np.int64)
        every = x if names else np.union1d(x, times.steps)
        cells = [Cells(every), Cells(np.full(len(every), span.attempt))]
        cells.append(_spread(times.steps, times.seconds, np.ones(len(times.steps), np.bool_), every))
        nothing = np.zeros(len(x))
        for name in chosen:
            found = series.series.get(name)
            values, present = (nothing, nothing > 0) if found is None else (found.mean, found.present)
            cells.append(_spread(x, values, present, every))
        return cells, len(every) * (len(chosen) + 1)

    return Table(_with_numbers(SERIES, chosen), _pieces(store, spans, rows, len(chosen) + 1))


def layers_table(
    conn: Connection,
    store: Store,
    run: str,
    spans: Sequence[Span],
    names: Sequence[str],
    layers: Sequence[str],
    skip_damaged: bool = False,
) -> Table:
    """One row per step and layer that has a value: where and which layer, and a column per statistic and metric.

    Where buckets of several steps are left alone, `width` says of how many, and each mean has its minimum and maximum
    beside it. names: none for all there are. layers: those asked for, known ones. Raises UnknownStatistic, and as
    `series_table`.
    """
    known = known_names(conn, run, "layer")
    every = [*STATISTICS, *METRICS, *(name for name in known if name not in STATISTICS and name not in METRICS)]
    chosen = list(dict.fromkeys(names)) or [name for name in every if name in known or _computed(name, known)]
    for name in chosen:
        read.read_layers(conn, run, name, 0, 0, 1, layers)
    widest = read.layers_left(conn, run, [Stretch(span.attempt, span.first, span.stop) for span in spans])

    def rows(conn: Connection, span: Span) -> tuple[Piece, int]:
        wanted = (span.first, span.stop, span.stop - span.first, layers, span.attempt)
        found = [read.read_layers(conn, run, name, *wanted) for name in chosen]
        for one in found:
            _see_to(one.damaged, skip_damaged)
        return _layer_rows(found, span.attempt, parts)

    size = len(chosen) * len(layers)
    parts = PARTS if widest > 1 else PARTS[:1]
    labels = [name if part == "mean" else f"{name}_{part}" for name in chosen for part in parts]
    place = LAYER | {"width": "integer"} if widest > 1 else LAYER
    return Table(_with_numbers(place, labels), _pieces(store, spans if size else (), rows, max(size, 1), widest))


def spectra_table(store: Store, run: str, spans: Sequence[Span], layers: Sequence[str], of: str | None) -> Table:
    """One row per spectrum, by layer and then by step, with its singular values and their indices as lists.

    layers: those asked for, known ones. of: what was decomposed, None for all.
    """

    def pieces() -> Iterator[Piece]:
        for layer in layers:
            for one in SPECTRUM_OF if of is None else (of,):
                yield from _pieces(store, spans, _spectra_reader(run, layer, one), SPECTRUM_VALUES)

    return Table(SPECTRUM, pieces())


def _spectra_reader(run: str, layer: str, of: str) -> Read:
    def rows(conn: Connection, span: Span) -> tuple[Piece, int]:
        found = read.read_spectra(conn, run, layer, span.first, span.stop, MOST_STEPS, of, span.attempt)
        return [_spectrum_cells(found, name, kind) for name, kind in SPECTRUM.items()], len(found) * SPECTRUM_VALUES

    return rows


def _pieces(store: Store, spans: Sequence[Span], rows: Read, width: int, whole: int = 1) -> Iterator[Piece]:
    """Read range by range, each in a transaction of its own: a slow reader holds up nothing.

    width: numbers that one step has at most. Ranges are made so long that they hold about VALUES_AT_ONCE numbers,
    going by how many the last one held, and end at a multiple of `whole` steps.
    """
    shortest = max(VALUES_AT_ONCE // width, 1)
    steps = shortest
    for span in spans:
        at = span.first
        while at < span.stop:
            end = min(-(-(at + min(steps, MOST_STEPS)) // whole) * whole, span.stop)
            with store.read() as conn:
                piece, values = rows(conn, Span(span.attempt, at, end))
            if len(piece[0]):
                yield piece
            at = end
            if values < VALUES_AT_ONCE // 4:
                steps = min(steps * 2, shortest * MOST_GROWTH)
            elif values > VALUES_AT_ONCE:
                steps = max(steps // 2, shortest)


def _see_to(damaged: Sequence[tuple[int, int]], skip: bool) -> None:
    """Raise Problem 500 for steps that cannot be read back, unless they are to be skipped."""
    if damaged and not skip:
        ranges = ", ".join(f"{first} to {last}" for first, last in damaged[:10])
        raise Problem("damaged", f"what was recorded at steps {ranges} cannot be read back")


def _with_numbers(place: dict[str, Kind], names: Sequence[str]) -> dict[str, Kind]:
    """Columns of numbers beside those of the place; a name that is taken there gets `_value` behind it."""
    columns = dict(place)
    for name in names:
        label = name
        while label in columns or (label != name and label in names):
            label += "_value"
        columns[label] = "number"
    return columns


def _computed(name: str, known: dict[str, bool]) -> bool:
    """Whether a metric is computed on reading, from statistics that are there."""
    metric = METRICS.get(name)
    return metric is not None and metric.function is not None and all(entry in known for entry in metric.inputs)


def _spread(steps: Int64, values: Float64, present: Bool, every: Int64) -> Cells:
    """What is known at some steps as cells of the steps `every`, (N,); missing at the others."""
    if len(steps) == len(every) and (steps == every).all():
        return Cells(values, present)
    spread, there = np.zeros(len(every)), np.zeros(len(every), np.bool_)
    own = np.isin(steps, every)
    at = np.searchsorted(every, steps[own])
    spread[at], there[at] = values[own], present[own]
    return Cells(spread, there)


def _layer_rows(found: Sequence[LayerSeries], attempt: int, parts: Sequence[str]) -> tuple[Piece, int]:
    """Put statistics of the same L layers, each over its own steps, side by side. parts: of their buckets."""
    steps = np.unique(np.concatenate([np.asarray(one.x, np.int64) for one in found]))
    values = np.zeros((len(found) * len(parts), len(steps), len(found[0].layers)))
    present = np.zeros(values.shape, np.bool_)
    for row, (one, part) in enumerate(product(found, parts)):
        at = np.searchsorted(steps, one.x)
        values[row, at], present[row, at] = getattr(one, part).T, one.present.T
    step, layer = np.nonzero(present.any(0))
    places = layer.tolist()
    cells = [Cells(steps[step]), Cells(np.full(len(step), attempt))]
    cells += [Cells([texts[place] for place in places]) for texts in (found[0].layers, found[0].roles)]
    cells.append(Cells(np.array(found[0].depths, np.int64)[layer]))
    if len(parts) > 1:
        cells.append(Cells(_widths(found, steps)[step]))
    cells += [Cells(values[row, step, layer], present[row, step, layer]) for row in range(len(values))]
    return cells, values.size


def _widths(found: Sequence[LayerSeries], steps: Int64) -> Int64:
    """How many steps the widest number at each step stands for, (N,)."""
    widths: Int64 = np.ones(len(steps), np.int64)
    for first, last, width in (entry for one in found for entry in one.retired):
        inside = (steps >= first) & (steps <= last)
        widths[inside] = np.maximum(widths[inside], width)
    return widths


def _spectrum_cells(spectra: Sequence[Spectrum], name: str, kind: Kind) -> Cells:
    entries = [getattr(spectrum, name) for spectrum in spectra]
    if kind in ("integer", "number"):
        return Cells(np.array(entries, np.int64 if kind == "integer" else np.float64))
    return Cells(entries)
