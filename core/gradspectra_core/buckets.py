"""Buckets over steps: many recorded steps in few columns, with no spike and no non-finite number lost."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.pages import wide_array
from gradspectra_core.pyramid import Level, coarser, joined, leaves, same_in_all
from gradspectra_core.records import Bool, Float64, Int64
from gradspectra_core.widths import FACTOR, ladder, level_at, width_of

Bucketed = tuple[Int64, Float64, Float64, Float64, Float64, Int64, Bool]
"""(x, mean, min, max, last, nonfinite, present)"""


def bucket_width(span: int, columns: int) -> int:
    """Steps per bucket: the smallest power of two with span/width ≤ columns; 1 for a span that fits as it is.

    span: number of steps asked for; columns: how many buckets they may make. Raises ValueError for columns < 1.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    return 1 << max(-(-span // columns) - 1, 0).bit_length()


def level_of(width: int) -> int:
    """The coarsest whole level whose buckets fit in `width` steps, a power of two; ValueError below 1."""
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    return (width.bit_length() - 1) // (FACTOR.bit_length() - 1)


def bucket(steps: Int64, values: NDArray[Any], present: Bool, width: int) -> Bucketed:
    """Bucket R series over the same S recorded steps; bucket b holds the steps with step // width = b.

    steps: (S,) strictly increasing; values, present: (R, S). width: a power of two. Returns x (N,), the first recorded
    step of each bucket that holds any, and (R, N) each: mean, min, max and last of the finite values, the count of
    values that are not finite, and whether there is a value at all. With values but no finite one, mean, min, max and
    last are NaN if one of them is NaN, else ±inf (min and max those of the infinities, mean and last NaN where both
    signs occur). Above eight steps numbers of float32 series are float32. Raises ValueError for a width below 1.
    """
    level, top = leaves(steps, values, present, last=True), level_at(width)
    dtype = np.dtype(np.float32 if values.dtype == np.float32 else np.float64)
    reached = 1
    for number in ladder(top):
        level = coarser(level, width_of(number) // reached, dtype)
        reached = width_of(number)
    return shown(level, width // reached)


def shown(levels: Level | Sequence[Level], factor: int = 1) -> Bucketed:
    """Return what `bucket` does from a level of the pyramid, `factor` (1, 2 or 4) of its buckets in each.

    levels: one, or several of one level with different buckets; they are not put together before they must be.
    """
    parts = [levels] if isinstance(levels, Level) else _filled(levels)
    if factor > 1:
        apart = all(part.numbers[0] % factor == 0 for part in parts[1:])
        parts = [coarser(part, factor) for part in parts] if apart else [coarser(joined(parts), factor)]
    if len(parts) > 1 and not all(map(_whole, parts)):
        parts = [joined(parts)]
    arrays, spare = _float64(parts)
    if len(parts) > 1 or _whole(parts[0]):
        spare[...] = 0
        return np.concatenate([part.first for part in parts]), *arrays, spare, np.ones(spare.shape, np.bool_)
    (level,) = parts
    counts = [one for one in (level.nan, level.up, level.down) if one is not None]
    nonfinite: Int64 = sum(counts[1:], start=counts[0]) if counts else np.zeros(level.mean.shape, np.int64)
    bare = level.finite == 0
    if bare.any():
        arrays = _fill(level, bare, arrays)
    return level.first, *arrays, nonfinite, ~bare if not counts else (level.finite + nonfinite) > 0


_Four = tuple[Float64, Float64, Float64, Float64]


def _filled(levels: Sequence[Level]) -> list[Level]:
    """The levels that have buckets, in one where they do not follow each other."""
    parts = [level for level in levels if len(level.numbers)] or list(levels[:1])
    in_order = all(one.numbers[-1] < other.numbers[0] for one, other in pairwise(parts))
    return parts if in_order else [joined(parts)]


def _whole(level: Level) -> bool:
    """Whether every row has a finite value in every bucket, and none that is not."""
    counts = level.nan, level.up, level.down
    return all(one is None for one in counts) and bool((same_in_all(level.finite) > 0).all())


def _float64(parts: Sequence[Level]) -> tuple[_Four, Int64]:
    """Mean, low, high and last of levels side by side, an array that is given twice converted once; room for counts."""
    columns = [(level.mean, level.low, level.high, level.mean if level.last is None else level.last) for level in parts]
    own = list(zip(*columns, strict=True))
    keys = [tuple(map(id, arrays)) for arrays in own]
    distinct = dict(zip(keys, own, strict=True))
    rows, count = parts[0].rows, sum(len(level.numbers) for level in parts)
    room = wide_array((len(distinct) + 1, rows, count))
    found = dict(zip(distinct, room, strict=False))
    for key, arrays in distinct.items():
        np.concatenate(arrays, axis=1, out=found[key])
    mean, low, high, last = (found[key] for key in keys)
    return (mean, low, high, last), room[-1].view(np.int64)


def _fill(level: Level, bare: Bool, arrays: _Four) -> _Four:
    """Give the buckets without a finite value what their infinities and NaNs say; NaN where there is nothing."""
    none = np.zeros(bare.shape, np.int64)
    nan, up, down = ((none if one is None else one) > 0 for one in (level.nan, level.up, level.down))
    lost = nan | ~(up | down)
    low = np.where(lost, np.nan, np.where(down, -np.inf, np.inf))
    high = np.where(lost, np.nan, np.where(up, np.inf, -np.inf))
    middle = np.where(up & down, np.nan, low)
    filled = (np.where(bare, own, was) for own, was in zip((middle, low, high, middle), arrays, strict=True))
    mean, low, high, last = filled
    return mean, low, high, last
