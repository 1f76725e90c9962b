"""The arithmetic of the pyramid: buckets of eight, of eight of those, and so on, and what answers are read from them.

Bucket b of level L covers the steps with step // 8^L = b. A bucket is always made of the eight below it, in order of
steps, wherever those come from: the same numbers give the same bits, in memory or through the database, at once or in
pieces. Above level 0 numbers of float32 statistics are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradspectra_core.records import Bool, Int64
from gradspectra_core.slots import Numbers, Slots, constant, in_each_row, repeated
from gradspectra_core.widths import FACTOR as FACTOR

_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Level:
    """N buckets of one level for R rows (layers, or series).

    numbers: (N,) bucket numbers, strictly increasing. first: (N,) first step recorded in each, by any row. mean, low,
    high, last: (R, N) float32 or float64 of the finite values, 0 where there are none; last is None where it is not
    kept. finite: (R, N) int64, how many values are finite. nan, up, down: (R, N) counts of NaN, +inf and -inf, None
    where there are none at all. lost: (2, K), the steps [first, stop) of K ranges whose numbers were damaged when the
    buckets were made, which lack them; None where there are none.
    """

    numbers: Int64
    first: Int64
    mean: Numbers
    low: Numbers
    high: Numbers
    last: Numbers | None
    finite: Int64
    nan: Int64 | None = None
    up: Int64 | None = None
    down: Int64 | None = None
    lost: Int64 | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.mean.shape[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self._arrays().values() if array is not None)

    def cut(self, keep: slice | Bool | Int64) -> Level:
        """Return the buckets at `keep` alone; what is lost is kept whole."""
        arrays = self._each(lambda array: array[:, keep])
        return Level(self.numbers[keep], self.first[keep], lost=self.lost, **arrays)

    def select(self, rows: Int64) -> Level:
        """Return rows by their place; -1, or one beyond those there are, gives a row without values."""
        count = self.rows
        if len(rows) == count and (rows == np.arange(count)).all():
            return self
        there = (rows >= 0) & (rows < count)
        place = np.where(there, rows, 0)
        if there.all():
            return replace(self, **self._each(lambda array: array[place]))
        return replace(
            self,
            **self._each(lambda array: np.where(there[:, None], array[place] if count else 0, array.dtype.type(0))),
        )

    def _each(self, change: Callable[[Numbers], Numbers]) -> dict[str, Any]:
        """The arrays changed, by name; one that stands for several still does."""
        own = {id(array): array for array in self._arrays().values() if array is not None}
        changed = {key: change(array) for key, array in own.items()}
        return {name: None if array is None else changed[id(array)] for name, array in self._arrays().items()}

    def _arrays(self) -> dict[str, Numbers | None]:
        return {name: getattr(self, name) for name in _ARRAYS}


_ARRAYS = ("mean", "low", "high", "last", "finite", "nan", "up", "down")


def nothing(rows: int, dtype: np.dtype[Any], *, last: bool) -> Level:
    """Return no buckets at all, of so many rows."""
    none, empty = np.empty(0, np.int64), np.empty((rows, 0), dtype)
    return Level(none, none, empty, empty, empty, empty if last else None, np.empty((rows, 0), np.int64))


def leaves(steps: Int64, values: Numbers, present: Bool | None, *, last: bool) -> Level:
    """Return level 0: each recorded step a bucket of its own.

    steps: (S,) strictly increasing; values, present: (R, S), None where every value is there. Integers become
    float64. last: keep it above level 0 too.
    """
    values = np.ascontiguousarray(values, values.dtype if values.dtype in (np.float32, np.float64) else np.float64)
    finite = np.isfinite(values)
    good = finite if present is None else finite & present
    if good.all():
        return Level(steps, steps, values, values, values, values if last else None, repeated(1, values.shape))
    held = np.where(good, values, values.dtype.type(0))
    kinds: list[Int64 | None] = [None, None, None]
    bad = ~finite if present is None else present & ~finite
    if bad.any():
        kinds = [(bad & kind).astype(np.int64) for kind in (np.isnan(values), values == np.inf, values == -np.inf)]
    return Level(steps, steps, held, held, held, held if last else None, good.astype(np.int64), *kinds)


def coarser(level: Level, factor: int = FACTOR, dtype: np.dtype[Any] | None = None) -> Level:
    """Return buckets that are `factor` (at most eight, a power of two) times as wide.

    dtype: of mean, low, high and last above; None leaves float64. What float32 cannot hold becomes its largest. What is
    lost is for the caller to carry over.
    """
    if not len(level.numbers):
        return nothing(level.rows, np.dtype(np.float64) if dtype is None else dtype, last=level.last is not None)
    parts = _aligned(level, factor)
    if len(parts) > 1:
        return joined([coarser(part, factor, dtype) for part in parts])
    dense = Slots.of(level.numbers, factor)
    if dense.alone:
        return _renumbered(level, factor, dtype)
    held = same_in_all(level.finite)
    whole = bool(held.all())
    finite = dense.total(held)
    counts = [None if array is None else dense.total(array) for array in (level.nan, level.up, level.down)]
    low, high = level.low, level.high
    if not whole:
        low, high = np.where(held > 0, low, np.inf), np.where(held > 0, high, -np.inf)
    low, high = dense.extreme(np.minimum, low, np.inf), dense.extreme(np.maximum, high, -np.inf)
    if not whole and (bare := finite == 0).any():
        low, high = np.where(bare, 0.0, low), np.where(bare, 0.0, high)
    low, high = low + 0.0, high + 0.0  # one zero: which sign a minimum of both has depends on the processor
    with np.errstate(over="ignore"):  # numbers near the largest, whose weights add up to a bit more than 1
        mean = dense.mean(level.mean, held, finite)
    np.minimum(np.maximum(mean, low, out=mean), high, out=mean)
    mean = mean if dtype is None else mean.astype(dtype) if low.dtype == dtype else _cast(mean, dtype)
    last = None if level.last is None else _cast(dense.latest(level.last, held, whole), dtype)
    low, high = _cast(low, dtype), _cast(high, dtype)
    finite = in_each_row(finite, level.rows)
    return Level(
        level.numbers[dense.starts] // factor, level.first[dense.starts], mean, low, high, last, finite, *counts
    )


def _renumbered(level: Level, factor: int, dtype: np.dtype[Any] | None) -> Level:
    """As `coarser`, of buckets that each lie in a wider one by themselves."""
    own = {id(array): array for array in (level.mean, level.low, level.high)}
    cast = {key: _cast(array + 0.0, dtype) for key, array in own.items()}
    mean, low, high = (cast[id(array)] for array in (level.mean, level.low, level.high))
    mean = mean.astype(np.float64) if dtype is None else mean
    counts = level.finite, level.nan, level.up, level.down
    return Level(
        level.numbers // factor,
        level.first,
        mean,
        low,
        high,
        None if level.last is None else _cast(level.last, dtype),
        *counts,
    )


def _aligned(level: Level, factor: int) -> list[Level]:
    """Cut buckets without gaps into whole wider ones, which need no copy to be added up, and those before and after.

    Any other buckets, and few of them, are given back in one.
    """
    count, first = len(level.numbers), int(level.numbers[0])
    begin = -first % factor
    end = begin + (count - begin) // factor * factor
    if int(level.numbers[-1]) - first + 1 != count or end - begin < 8 * factor:
        return [level]
    cuts = (slice(0, begin), slice(begin, end), slice(end, count))
    return [level.cut(cut) for cut in cuts if cut.start < cut.stop]


def joined(levels: Sequence[Level]) -> Level:
    """Put buckets of different numbers of one level side by side, in order; rows the same in all."""
    levels = [level for level in levels if len(level.numbers)] or list(levels[:1])
    if len(levels) == 1:
        return levels[0]
    order = None
    numbers = np.concatenate([level.numbers for level in levels])
    if not (numbers[1:] > numbers[:-1]).all():
        order = np.argsort(numbers, kind="stable")
    columns = {name: [getattr(level, name) for level in levels] for name in _ARRAYS}
    own = {tuple(map(id, column)): column for column in columns.values()}  # of single steps mean, low and high are one
    beside = {key: _beside(column, levels) for key, column in own.items()}
    arrays = {name: beside[tuple(map(id, column))] for name, column in columns.items()}
    lost = [level.lost for level in levels if level.lost is not None]
    arrays["lost"] = np.concatenate(lost, axis=1) if lost else None
    whole = Level(numbers, np.concatenate([level.first for level in levels]), **arrays)  # type: ignore[arg-type]
    return whole if order is None else whole.cut(order)


def stacked(levels: Sequence[Level]) -> Level:
    """Put the rows of several levels over the union of their buckets; first is then the earliest of all."""
    if len(levels) == 1:
        return levels[0]
    numbers = np.unique(np.concatenate([level.numbers for level in levels]))
    first = np.full(len(numbers), np.iinfo(np.int64).max)
    parts: dict[str, list[Numbers | None]] = {name: [] for name in _ARRAYS}
    for level in levels:
        same = len(level.numbers) == len(numbers)
        at = np.searchsorted(numbers, level.numbers)
        first[at] = np.minimum(first[at], level.first)
        for name in _ARRAYS:
            array = getattr(level, name)
            if array is not None and not same:
                spread = np.zeros((level.rows, len(numbers)), array.dtype)
                spread[:, at] = array
                array = spread
            parts[name].append(array)
    arrays: dict[str, Numbers | None] = {}
    for name, own in parts.items():
        if all(array is None for array in own):
            arrays[name] = None
        else:
            zero = [np.zeros((level.rows, len(numbers)), np.int64) for level in levels]
            arrays[name] = np.concatenate([other if a is None else a for a, other in zip(own, zero, strict=True)])
    return Level(numbers, first, **arrays)  # type: ignore[arg-type]


def same_in_all(counts: Int64) -> Int64:
    """Return counts (R, N) as one row, (1, N), where all rows are known to have the same, else as they are."""
    return counts[:1] if counts.strides[0] == 0 else counts


def _cast(array: Numbers, dtype: np.dtype[Any] | None) -> Numbers:
    if dtype is None or array.dtype == dtype:
        return array
    if dtype == np.float32 and array.dtype == np.float64:
        array = np.clip(array, -_LARGEST, _LARGEST)
    return array.astype(dtype)


def _beside(arrays: list[Numbers | None], levels: Sequence[Level]) -> Numbers | None:
    if all(array is None for array in arrays):
        return None
    there = [
        np.zeros(level.mean.shape, np.int64) if array is None else array
        for array, level in zip(arrays, levels, strict=True)
    ]
    one = constant(there[0])
    if one is not None and all(constant(array) == one for array in there):
        return np.broadcast_to(there[0][0, 0], (there[0].shape[0], sum(array.shape[1] for array in there)))
    if all(array.strides[0] == 0 for array in there):
        return in_each_row(np.concatenate([array[:1] for array in there], axis=1), there[0].shape[0])
    return np.concatenate(there, axis=1)
