"""What has a pyramid: a stored series or statistic, or a metric that is computed of several when it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from gradspectra_core.blocks import Recorded
from gradspectra_core.pyramid import Level, leaves
from gradspectra_core.recorded import overlaid
from gradspectra_core.records import Int64

_TOGETHER = 1 << 15
"""So many numbers, or fewer, are put together to compute with."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A stored series or statistic, or a metric that `function` makes of several, of so many rows.

    name: of its pyramid; inputs: of what is recorded; last: whether the last value of a bucket is kept.
    """

    name: str
    inputs: tuple[str, ...]
    rows: int
    last: bool
    function: Callable[..., Any] | None = None

    def apart(self, pieces: Sequence[Sequence[Recorded]]) -> Iterator[tuple[Recorded, ...]]:
        """Give the inputs' pieces of the same steps, where they follow one another and lack nothing; else nothing.

        pieces: of each input. Numbers made of such pieces one by one are those that they make together; small ones are
        put together, since each costs something by itself.
        """
        rest = [part for own in pieces for part in own]
        kinds = {(part.values.dtype, part.values.shape[0], part.present is None) for part in rest}
        if not rest or len(kinds) > 1 or not kinds <= {(rest[0].values.dtype, self.rows, True)}:
            return
        if len({len(own) for own in pieces}) > 1 or not _in_order([part.steps for part in pieces[0]]):
            return
        together = zip(*pieces, strict=True)
        if all(np.array_equal(part.steps, own[0].steps) for own in together for part in own[1:]):
            for few in _portions([part.values.size for part in pieces[0]]):
                yield tuple([overlaid(own[few], self.rows) for own in pieces])

    def leaves(self, recorded: Sequence[Recorded]) -> tuple[Level, np.dtype[Any]]:
        """Return level 0 of the inputs, as given, and the type of the levels above."""
        single = all(part.values.dtype == np.float32 for part in recorded)
        dtype = np.dtype(np.float32 if single else np.float64)
        if self.function is None:
            (part,) = recorded
            return leaves(part.steps, part.values, part.present, last=self.last), dtype
        steps = recorded[0].steps
        for part in recorded[1:]:
            steps = np.intersect1d(steps, part.steps, assume_unique=True)
        parts = [_at(part, steps) for part in recorded]
        values = self.function(*(part.values for part in parts))
        masks = [part.present for part in parts if part.present is not None]
        if not masks:
            return leaves(steps, values, None, last=self.last), dtype
        computed = overlaid([Recorded(steps, values, np.logical_and.reduce(masks))], self.rows)
        return leaves(computed.steps, computed.values, computed.present, last=self.last), dtype


def _in_order(numbers: Sequence[Int64]) -> bool:
    return all(one[-1] < other[0] for one, other in pairwise(numbers))


def _portions(sizes: Sequence[int]) -> Iterator[slice]:
    """Cut pieces of these sizes into ranges that together have no more than _TOGETHER, or are one piece each."""
    begin = total = 0
    for at, size in enumerate(sizes):
        if total and total + size > _TOGETHER:
            yield slice(begin, at)
            begin, total = at, 0
        total += size
    yield slice(begin, len(sizes))


def _at(part: Recorded, steps: Int64) -> Recorded:
    if len(part.steps) == len(steps):
        return part
    at = np.searchsorted(part.steps, steps)
    return Recorded(steps, part.values[:, at], None if part.present is None else part.present[:, at])
