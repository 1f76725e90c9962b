"""Recorded numbers of a run as tables, read a range of steps at a time: what all tables share, series and spectra."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gradspectra_core.records import SPECTRUM_OF, Bool, Int64
from gradspectra_core.statistics import RUN_METRICS, SCALARS
from gradspectra_core.views import Spectrum
from gradspectra_store import Store, read, run_views
from gradspectra_store.names import whole_names
from gradspectra_store.next_steps import next_step
from numpy.typing import NDArray
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
PLACE: dict[str, Kind] = {"step": "integer", "attempt": "integer"}
SERIES: dict[str, Kind] = {**PLACE, "time": "number"}
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

    def rows(self, begin: int, end: int) -> Cells:
        """The cells [begin, end) alone."""
        return Cells(self.values[begin:end], None if self.present is None else self.present[begin:end])


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
    kinds = kinds_of(chosen, whole_names(conn, run, "run"))

    def rows(conn: Connection, span: Span) -> tuple[Piece, int]:
        found = read.read_recorded(conn, run, chosen, span.first, span.stop, span.attempt)
        times = read.read_times(conn, run, span.first, span.stop, span.attempt)
        see_to((*found.damaged, *times.damaged), skip_damaged)
        steps = [part.steps for part in found.parts.values()] + ([] if names else [times.steps])
        every = np.unique(np.concatenate([np.empty(0, np.int64), *steps]))
        cells = [Cells(every), Cells(np.full(len(every), span.attempt)), _spread(times.steps, times.seconds, every)]
        for name, kind in kinds.items():
            part = found.parts.get(name)
            cells.append(
                _nothing(len(every)) if part is None else _spread(part.steps, as_kind(kind, part.values[0]), every)
            )
        return cells, len(every) * (len(chosen) + 1)

    return Table(beside(SERIES, kinds), pieces(store, (run, "scalars"), spans, rows, len(chosen) + 1))


def spectra_table(
    store: Store, run: str, spans: Sequence[Span], layers: Sequence[str], of: str | None, skip_damaged: bool = False
) -> Table:
    """One row per spectrum, by layer and then by step, with its singular values and their indices as lists.

    layers: those asked for, known ones. of: what was decomposed, None for all. Raises with its piece Problem 500 for
    spectra that cannot be read back, unless they are to be skipped.
    """

    def every() -> Iterator[Piece]:
        for layer in layers:
            for one in SPECTRUM_OF if of is None else (of,):
                rows = _spectra_reader(run, layer, one, skip_damaged)
                yield from pieces(store, (run, "spectra"), spans, rows, SPECTRUM_VALUES)

    return Table(SPECTRUM, every())


def _spectra_reader(run: str, layer: str, of: str, skip_damaged: bool) -> Read:
    def rows(conn: Connection, span: Span) -> tuple[Piece, int]:
        found = read.find_spectra(conn, run, layer, span.first, span.stop, MOST_STEPS, of, span.attempt)
        see_to(found.damaged, skip_damaged)
        spectra = found.spectra
        return [_spectrum_cells(spectra, name, kind) for name, kind in SPECTRUM.items()], len(spectra) * SPECTRUM_VALUES

    return rows


def pieces(
    store: Store, of: tuple[str, str], spans: Sequence[Span], rows: Read, width: int, whole: int = 1
) -> Iterator[Piece]:
    """Read range by range, each in a transaction of its own: a slow reader holds up nothing.

    of: the run and the kind of its numbers. width: numbers that one step has at most. Ranges are made so long that they
    hold about VALUES_AT_ONCE numbers, going by how many the last one held, and end at a multiple of `whole` steps.
    After one that holds nothing the next begins where the run goes on, however far that is.
    """
    shortest = max(VALUES_AT_ONCE // width, 1)
    steps = shortest
    for span in spans:
        at = span.first
        while at < span.stop:
            end = min(-(-(at + min(steps, MOST_STEPS)) // whole) * whole, span.stop)
            with store.read() as conn:
                piece, values = rows(conn, Span(span.attempt, at, end))
                following = end if len(piece[0]) else next_step(conn, *of, span.attempt, end, whole)
            if len(piece[0]):
                yield piece
            at = span.stop if following is None else max(following // whole * whole, end)
            if values < VALUES_AT_ONCE // 4:
                steps = min(steps * 2, shortest * MOST_GROWTH)
            elif values > VALUES_AT_ONCE:
                steps = max(steps // 2, shortest)


def see_to(damaged: Sequence[tuple[int, int]], skip: bool) -> None:
    """Raise Problem 500 for steps that cannot be read back, unless they are to be skipped."""
    if damaged and not skip:
        ranges = ", ".join(f"{first} to {last}" for first, last in damaged[:10])
        raise Problem("damaged", f"what was recorded at steps {ranges} cannot be read back")


def kinds_of(names: Sequence[str], whole: set[str]) -> dict[str, Kind]:
    """What the cells of names are. whole: the names that have only ever come as counts."""
    return {name: "integer" if name in whole else "number" for name in names}


def as_kind(kind: Kind, values: NDArray[Any]) -> NDArray[Any]:
    """Numbers as the cells of a column are; raises TypeError for floats where integers belong."""
    wanted = np.int64 if kind == "integer" else np.float64
    return values.astype(wanted, casting="same_kind" if values.size else "unsafe")


def beside(place: dict[str, Kind], kinds: dict[str, Kind]) -> dict[str, Kind]:
    """Columns beside those of the place; a name that is taken there gets `_value` behind it."""
    columns = dict(place)
    for name, kind in kinds.items():
        label = name
        while label in columns or (label != name and label in kinds):
            label += "_value"
        columns[label] = kind
    return columns


def _nothing(rows: int) -> Cells:
    return Cells(np.zeros(rows, np.int64), np.zeros(rows, np.bool_))


def _spread(steps: Int64, values: NDArray[Any], every: Int64) -> Cells:
    """What is known at some steps as cells of the steps `every`, (N,); missing at the others."""
    if len(steps) == len(every) and (steps == every).all():
        return Cells(values)
    spread, there = np.zeros(len(every), values.dtype), np.zeros(len(every), np.bool_)
    own = np.isin(steps, every)
    at = np.searchsorted(every, steps[own])
    spread[at], there[at] = values[own], True
    return Cells(spread, there)


def _spectrum_cells(spectra: Sequence[Spectrum], name: str, kind: Kind) -> Cells:
    entries = [getattr(spectrum, name) for spectrum in spectra]
    if kind in ("integer", "number"):
        return Cells(np.array(entries, np.int64 if kind == "integer" else np.float64))
    return Cells(entries)
