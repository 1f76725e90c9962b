"""A range of steps and a number of columns as a question asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradspectra_core.buckets import bucket_width
from gradspectra_core.widths import level_at, width_of

from gradspectra_store.attempts import END
from gradspectra_store.errors import BadRequest
from gradspectra_store.stretches import Stretch

MAX_COLUMNS = 100_000
PIECE_VALUES = 1 << 20
"""So many values are read and bucketed at a time: each of the arrays on the way is then at most 8 MiB large. For an
answer of more buckets, from blocks, as many as it has: what is done per piece would count."""


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

    def stretches(self, spans: dict[int, tuple[int, int]]) -> list[Stretch]:
        """Return the part of the range that each attempt speaks for. spans: as `visible_spans` gives."""
        cut = (Stretch(number, max(self.start, first), min(self.stop, end)) for number, (first, end) in spans.items())
        return [one for one in cut if one.first < one.stop]


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

    def pieces(self, rows: int, loose: int, widest: int = 1) -> Iterator[tuple[int, int]]:
        """Cut the steps into ranges [first, stop) of whole buckets that take a bounded space to read `rows` series of.

        loose: how many steps may have to be read as they were recorded. widest: steps of the widest buckets (a power of
        two) where these are wider than those of the grid.
        """
        values, width = PIECE_VALUES // max(rows, 1), max(self.width, widest)
        if loose <= values:
            buckets = self.last // self.width - self.first // self.width + 1
            values = max(values, buckets) * width_of(level_at(self.width))
        steps = max(values // width, 1) * width
        begin, end = self.first // width * width, (self.last // width + 1) * width
        if 0 < end - begin <= steps:
            yield begin, end
            return
        for at in range(self.first // steps, self.last // steps + 1):
            yield at * steps, (at + 1) * steps
