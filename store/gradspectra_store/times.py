"""When each step was recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from gradspectra_core.blocks import Recorded
from gradspectra_core.records import Float64, Int64

from gradspectra_store.attempts import visible_spans
from gradspectra_store.block_rows import Source
from gradspectra_store.levels import Levels
from gradspectra_store.pieces import merged_damage
from gradspectra_store.ranges import Range
from gradspectra_store.rounds import TIMES
from gradspectra_store.scan import Found, find, load
from gradspectra_store.segments import times_of


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


def _times_part(payload: bytes) -> Recorded:
    steps, seconds = times_of(payload)
    return Recorded(steps.copy(), seconds[None].copy(), None)
