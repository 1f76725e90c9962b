"""Buckets in wider ones of a few slots each, and what is added up over these slots."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.records import Int64

Numbers = NDArray[Any]
_SMALL = 1 << 13
"""Fewer values are added up all slots at once, more a slot at a time."""
_IN_CACHE = 1 << 15
"""So many values in float64 stay in a processor's cache."""


@dataclass(frozen=True, slots=True)
class Slots:
    """Where `count` buckets lie in B wider ones of `factor` slots each.

    starts: (B,), the place of the first bucket of each wider one. place: the slots taken, None for all. Arrays are
    (R, count) and what is made of them (R, B); counts may come as one row, (1, count), where all rows have the same.
    """

    starts: Int64
    count: int
    factor: int
    place: Int64 | slice | None

    @classmethod
    def of(cls, numbers: Int64, factor: int) -> Slots:
        """Lay out buckets by their numbers, (count,), strictly increasing and at least one."""
        count, first, last = len(numbers), int(numbers[0]), int(numbers[-1])
        if last - first + 1 == count:
            begin = first % factor
            starts = np.arange(-begin, count, factor)
            starts[0] = 0
            whole = len(starts) * factor == count
            return cls(starts, count, factor, None if whole else slice(begin, begin + count))
        wider = numbers // factor
        starts = np.flatnonzero(np.concatenate(([True], wider[1:] != wider[:-1])))
        if len(starts) * factor == count:
            return cls(starts, count, factor, None)
        group = np.repeat(np.arange(len(starts)), np.diff(starts, append=count))
        return cls(starts, count, factor, group * factor + numbers % factor)

    @property
    def groups(self) -> int:
        """How many wider buckets there are."""
        return len(self.starts)

    @property
    def alone(self) -> bool:
        """Whether each bucket lies in a wider one by itself, which is then the same."""
        return len(self.starts) == self.count

    def grouped(self, array: Numbers, missing: float) -> Numbers:
        """The array as (R, B, factor)."""
        if self.place is not None:
            dense = np.empty((array.shape[0], self.groups * self.factor), array.dtype)
            dense.fill(missing)
            dense[:, self.place] = array
            array = dense
        return array.reshape(array.shape[0], self.groups, self.factor)

    def spread(self, array: Numbers, missing: float) -> list[Numbers]:
        """The array as `factor` arrays (R, B): the first slot of every wider bucket, the second, and so on."""
        return list(self.grouped(array, missing).transpose(2, 0, 1))

    def total(self, counts: Int64) -> Int64:
        """The sum of counts."""
        if self.alone:
            return counts
        one = constant(counts)
        if one is not None and self.place is None:
            return repeated(int(one) * self.factor, (counts.shape[0], self.groups))
        if counts.size <= _SMALL:
            return np.add.reduceat(counts, self.starts, axis=1)
        return np.add.reduce(self.spread(counts, 0))  # type: ignore[no-any-return]

    def extreme(self, choose: np.ufunc, array: Numbers, missing: float) -> Numbers:
        """Minimum or maximum, as `choose` says. missing: what a slot that is not taken counts as."""
        if self.alone:
            return array
        if array.size <= _SMALL:
            return choose.reduceat(array, self.starts, axis=1)
        slots = self.spread(array, missing)
        found = slots[0].copy()
        for slot in slots[1:]:
            choose(found, slot, out=found)
        return found

    def mean(self, means: Numbers, finite: Int64, total: Int64) -> Numbers:
        """Weighted mean in float64, added up from the first slot to the last; 0 without a value."""
        if self.alone:
            return np.add(means, 0.0, dtype=np.float64)
        if means.size <= _SMALL:
            weights = self.grouped(finite, 0) / np.maximum(total, 1)[..., None]
            parts = np.multiply(self.grouped(means, 0.0), weights, dtype=np.float64)
            return np.add.accumulate(parts, axis=2)[..., -1] + 0.0
        if means.dtype == np.float32 and self.place is None and constant(finite) is not None:
            return self._even_mean(means)
        found: Numbers = np.zeros((means.shape[0], self.groups))
        share = np.empty_like(found)
        for slot, counts in zip(self.spread(means, 0.0), self.spread(finite, 0), strict=True):
            found += np.multiply(slot, counts / np.maximum(total, 1), out=share, dtype=np.float64)
        return found

    def _even_mean(self, means: Numbers) -> Numbers:
        """As `mean`, of float32 that all weigh the same: the sum by a power of two is the sum by parts, bit for bit."""
        slots = self.grouped(means, 0.0)
        found = np.empty(slots.shape[:2])
        rows = max(_IN_CACHE // max(means.shape[1], 1), 1)
        for at in range(0, len(found), rows):
            wide, own = slots[at : at + rows].astype(np.float64), found[at : at + rows]
            np.add(wide[..., 0], 0.0, out=own)
            for slot in range(1, self.factor):
                own += wide[..., slot]
        found *= 1 / self.factor
        return found

    def latest(self, array: Numbers, finite: Int64, whole: bool) -> Numbers:
        """The last value that is finite, 0 without one. whole: whether each bucket has a finite value."""
        if self.alone:
            return array
        if whole:
            return array[:, np.append(self.starts[1:], self.count) - 1]
        found = np.zeros((array.shape[0], self.groups), array.dtype)
        for slot, counts in zip(self.spread(array, 0.0), self.spread(finite, 0), strict=True):
            found = np.where(counts > 0, slot, found)
        return found


def repeated(value: int, shape: tuple[int, ...]) -> Int64:
    """The same count everywhere, which `constant` tells, kept once."""
    return np.ndarray(shape, np.int64, value.to_bytes(8, sys.byteorder), strides=(0,) * len(shape))


def in_each_row(counts: Numbers, rows: int) -> Numbers:
    """Counts that come as one row, (1, N), as (rows, N), kept once; others as they are."""
    if counts.shape[0] == rows:
        return counts
    count = counts.shape[1]
    if counts.strides == (0, 0):
        return np.ndarray((rows, count), counts.dtype, counts[:, :1].tobytes(), strides=(0, 0))
    return np.ndarray((rows, count), counts.dtype, np.ascontiguousarray(counts), strides=(0, counts.itemsize))


def constant(counts: Numbers) -> Any:
    """The value that all entries are known to have, None where they are kept one by one."""
    return counts.flat[0] if counts.size and counts.strides == (0, 0) else None
