"""Narrower buckets where a run lacks most steps of a range: the columns go to what was recorded, not to its holes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from gradspectra_core.buckets import Bucketed, level_of
from gradspectra_core.pyramid import Level, coarser, joined
from gradspectra_core.records import Int64
from gradspectra_core.widths import FACTOR, level_at

from gradspectra_store.levels import Levels
from gradspectra_store.quantities import Quantity
from gradspectra_store.ranges import PIECE_VALUES, Grid, Range
from gradspectra_store.stretches import Stretch

Origin = tuple[Sequence[Quantity], Levels]
"""Quantities, and what reads them."""


class Occupied(NamedTuple):
    """first: (N,) a step in each bucket that has a number, ascending; alone: no bucket has two numbers of one row."""

    first: Int64
    alone: bool


def occupied(parts: Sequence[Level], factor: int) -> Occupied:
    """Return which buckets, of `factor` (1, 2 or 4) of a level's, have numbers. parts: as `Levels.parts` gives."""
    level = joined(parts)
    level = coarser(level, factor) if factor > 1 else level
    counts = level.finite
    for one in (level.nan, level.up, level.down):
        counts = counts if one is None else counts + one
    return Occupied(level.first[counts.any(axis=0)], bool(counts.max(initial=0) <= 1))


def has_holes(grid: Grid, columns: int, answers: Sequence[Bucketed]) -> bool:
    """Say whether fewer than half of the columns are answered, with buckets that could be narrower."""
    return grid.width > 1 and 0 < 2 * sum(len(one[0]) for one in answers) < columns


def narrowed(
    grid: Grid,
    columns: int,
    found: Sequence[Occupied],
    origins: Sequence[Origin],
    wanted: Range,
    spans: dict[int, tuple[int, int]],
) -> tuple[int, list[tuple[int, int]]] | None:
    """Return the greatest width at which columns / 2 buckets or more have numbers, and where these are; 1 if none is.

    None where the grid has each number by itself already. The ranges [first, stop) are of whole buckets and are for
    reading one at a time. found: pieces of the grid's own buckets. spans: as `visible_spans` gives. Of each level that
    is looked at, from the coarse ones down, less than half of `columns` buckets have numbers, and of the last one less
    than 4 × columns; more is not read. As a run grows the width never falls, unless each number was by itself.
    """
    if all(one.alone for one in found):
        return None
    rows = sum(own.rows * len(own.inputs) for quantities, _ in origins for own in quantities)
    values = max(PIECE_VALUES // max(rows, 1), 1)
    loose = sum(levels.loose for _, levels in origins) > values
    first, width = np.concatenate([one.first for one in found]), grid.width
    while width > 1 and 2 * len(first) < columns:
        share = -(-columns // (2 * len(first)))
        below = FACTOR ** level_of(max(width >> (share - 1).bit_length(), 1))
        ranges = _around(first, width, values // (width if loose else width // below))
        cut = (Range(max(begin, wanted.start), min(stop, wanted.stop)) for begin, stop in ranges)
        first = _look(origins, below, (one.stretches(spans) for one in cut))
        if not len(first):  # what lies below is damaged
            return None
        width //= 2
        while width > below and 2 * len(_begins(first, width)) < columns:
            width //= 2
    return width, _around(first, width, values // width if loose else max(values, columns))


def _begins(steps: Int64, width: int) -> Int64:
    """Where the buckets begin that ascending steps lie in."""
    begins = steps // width * width
    return begins[np.diff(begins, prepend=-1) > 0]


def _around(steps: Int64, width: int, most: int) -> list[tuple[int, int]]:
    """Ranges [first, stop) with the buckets that hold these steps, `most` of them in each, or one."""
    begins, count = _begins(steps, width), max(most, 1)
    lasts = np.append(begins[count - 1 :: count], begins[-1:])
    return [(first, last + width) for first, last in zip(begins[::count].tolist(), lasts.tolist(), strict=False)]


def _look(origins: Sequence[Origin], width: int, pieces: Iterable[Sequence[Stretch]]) -> Int64:
    """A step in each bucket, of a whole level's width, that has a number of any of the quantities, ascending."""
    number = level_at(width)
    found = [np.empty(0, np.int64)]
    for own in pieces:
        parts = [one for quantities, levels in origins for one in levels.parts(quantities, number, own)]
        steps = np.unique(np.concatenate([occupied(one, 1).first for one in parts]))
        found.append(steps[np.diff(steps // width, prepend=-1) > 0])
    return np.concatenate(found)
