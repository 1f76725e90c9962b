"""A range of steps and a number of columns as a question asks for them."""

from __future__ import annotations

from dataclasses import dataclass

from gradspectra_core.buckets import bucket_width

from gradspectra_store.attempts import END
from gradspectra_store.errors import BadRequest

MAX_COLUMNS = 100_000
PIECE_VALUES = 1 << 22
"""So many values are read and bucketed at a time."""


@dataclass(frozen=True, slots=True)
class Range:
    """Steps in [start, stop)."""

    start: int
    stop: int

    @classmethod
    def of(cls, start: int | None, stop: int | None, columns: int) -> Range:
        """Check a question; None is open on that side. Raises BadRequest naming the field."""
        if not 1 <= columns <= MAX_COLUMNS:
            raise BadRequest("columns", f"must be from 1 to {MAX_COLUMNS}, got {columns}")
        first, end = 0 if start is None else start, END if stop is None else stop
        for field, step in (("start", first), ("stop", end)):
            if not 0 <= step <= END:
                raise BadRequest(field, f"must be a step from 0 to {END}, got {step}")
        if first > end:
            raise BadRequest("stop", f"must not lie before start, {first}, got {end}")
        return cls(first, end)


@dataclass(frozen=True, slots=True)
class Grid:
    """The buckets of an answer: of `width` steps each (a power of two), over the steps first to last."""

    first: int
    last: int
    width: int

    @classmethod
    def of(cls, first: int, last: int, columns: int) -> Grid:
        """Choose the smallest width at which these steps make at most `columns` buckets."""
        width = bucket_width(last - first + 1, columns)
        while last // width - first // width >= columns:
            width *= 2
        return cls(first, last, width)

    def piece(self, rows: int) -> int:
        """Return how many steps, a multiple of the width, to read at a time to bound what `rows` series take."""
        return max(PIECE_VALUES // max(rows, 1) // self.width, 1) * self.width
