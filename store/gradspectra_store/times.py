"""When each step was recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa
from gradspectra_core.blocks import Recorded
from gradspectra_core.records import Float64, Int64

from gradspectra_store.attempts import visible_spans
from gradspectra_store.block_rows import Source
from gradspectra_store.levels import Levels
from gradspectra_store.pieces import merged_damage
from gradspectra_store.ranges import Range
from gradspectra_store.rounds import TIMES
from gradspectra_store.scan import Found, find, load, reaches
from gradspectra_store.segments import times_of

_AT_ONCE = 1 << 20
_APART = 1 << 12
"""Steps so far apart, or farther, are looked up one by one: all between them would take longer."""
_BEFORE = 512


@dataclass(frozen=True, slots=True)
class Times:
    """steps: (N,) that were recorded; seconds: (N,) since 1970, by the job's clock; damaged: as in core's Series."""

    steps: Int64
    seconds: Float64
    damaged: tuple[tuple[int, int], ...]


def read_times(
    conn: sa.Connection, run: str, start: int | None = None, stop: int | None = None, attempt: int | None = None
) -> Times:
    """Return the recorded steps in [start, stop) and their times, of rank 0, whatever else was recorded at them.

    attempt: as in `read_series`. Raises UnknownRun, and BadRequest for a range that cannot be.
    """
    wanted = Range.of(start, stop, 1)
    spans = visible_spans(conn, run, attempt)
    found = find(conn, run, "scalars", spans, wanted.start, wanted.stop, derived=False)

    def segments(_: str, own: Sequence[Found]) -> Iterator[tuple[Found, Recorded | None]]:
        yield from load(conn, own, _times_part, "times", derived=False)

    levels = Levels(conn, Source(run, "scalars", False, 0, 0), found, segments)
    (part,) = levels.recorded([TIMES], 1, wanted.stretches(spans))
    return Times(part.steps, part.values[0], merged_damage([levels]))


def elapsed(conn: sa.Connection, run: str, steps: Int64, attempt: int | None = None) -> Float64:
    """Return the seconds from the first record to each of the steps (N,), increasing, by the job's clock: (N,).

    The time between the last visible record of an attempt and the first of the next is left out, a clock that was set
    back stands still, and a step without a time counts as the one before it. attempt: as in `read_series`. Raises
    UnknownRun, and BadRequest for an attempt that the run does not have.
    """
    reach = reaches(conn, run, "scalars", derived=False)
    found, total = np.full(len(steps), np.nan), 0.0
    for number, (first, stop) in sorted(visible_spans(conn, run, attempt).items()):
        begin, end = reach.get(number, (0, -1))
        begin, end = max(begin, first), min(end + 1, stop)
        whole = _first_and_last(conn, run, begin, end, number) if begin < end else None
        if whole is None:
            continue
        own = slice(*np.searchsorted(steps, (begin, end)))
        start = whole[0]
        found[own] = total + (_seconds_at(conn, run, steps[own], number) - start)
        total += max(whole[1] - start, 0.0)
    known: Float64 = np.fmax.accumulate(np.fmax(np.append(0.0, found), 0.0))[1:]
    return known


def _first_and_last(conn: sa.Connection, run: str, begin: int, end: int, attempt: int) -> tuple[float, float] | None:
    """The first and the last time that an attempt recorded at steps in [begin, end), None where it has none."""
    ends = []
    for forward in (True, False):
        size = 512
        while True:
            piece = (begin, min(begin + size, end)) if forward else (max(end - size, begin), end)
            seconds = read_times(conn, run, *piece, attempt).seconds
            if len(seconds):
                ends.append(float(seconds[0 if forward else -1]))
                break
            if size >= end - begin:
                return None
            size *= 8
    return ends[0], ends[1]


def _seconds_at(conn: sa.Connection, run: str, steps: Int64, attempt: int) -> Float64:
    """The times that an attempt recorded at these steps or last before them, NaN where that is more than _BEFORE."""
    found = np.full(len(steps), np.nan)
    at = 0
    while at < len(steps):
        end = at + int(np.searchsorted(steps[at:], int(steps[at]) + _AT_ONCE))
        far = np.flatnonzero(np.diff(steps[at:end]) > _APART)
        end = at + int(far[0]) + 1 if len(far) else end
        times = read_times(conn, run, max(int(steps[at]) - _BEFORE, 0), int(steps[end - 1]) + 1, attempt)
        place = np.searchsorted(times.steps, steps[at:end], side="right") - 1
        if len(times.steps):
            found[at:end] = np.where(place >= 0, times.seconds[np.maximum(place, 0)], np.nan)
        at = end
    return found


def _times_part(payload: bytes) -> Recorded:
    steps, seconds = times_of(payload)
    return Recorded(steps.copy(), seconds[None].copy(), None)
