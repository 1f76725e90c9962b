"""Buckets over steps: many recorded steps in few columns, with no spike and no non-finite number lost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.records import Bool, Float64, Int64

Bucketed = tuple[Int64, Float64, Float64, Float64, Float64, Int64, Bool]
"""(x, mean, min, max, last, nonfinite, present)"""


def bucket_width(span: int, columns: int) -> int:
    """Steps per bucket: the smallest power of two with span/width ≤ columns; 1 for a span that fits as it is.

    span: number of steps asked for; columns: how many buckets they may make. Raises ValueError for columns < 1.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    return 1 << max(-(-span // columns) - 1, 0).bit_length()


def bucket(steps: Int64, values: NDArray[np.floating] | NDArray[np.integer], present: Bool, width: int) -> Bucketed:
    """Bucket R series over the same S recorded steps; bucket b holds the steps with step // width = b.

    steps: (S,) strictly increasing; values, present: (R, S). Returns x (N,), the first recorded step of each bucket
    that holds any, and (R, N) each: mean, min, max and last of the finite values, the count of values that are not
    finite, and whether there is a value at all. With values but no finite one, mean, min, max and last are NaN if
    one of them is NaN, else ±inf (min and max those of the infinities, mean and last NaN where both signs occur).
    Raises ValueError for a width below 1.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    rows = values.shape[0]
    if not len(steps):
        empty = np.empty((rows, 0))
        return steps, empty, empty, empty, empty, empty.astype(np.int64), empty.astype(np.bool_)
    ids = steps // width
    starts = np.flatnonzero(np.concatenate(([True], ids[1:] != ids[:-1])))
    numbers = np.asarray(values, np.float64)
    finite = np.isfinite(numbers) & present
    counts = np.add.reduceat(present, starts, axis=1, dtype=np.int64)
    finite_counts = np.add.reduceat(finite, starts, axis=1, dtype=np.int64)
    low = np.minimum.reduceat(np.where(finite, numbers, np.inf), starts, axis=1)
    high = np.maximum.reduceat(np.where(finite, numbers, -np.inf), starts, axis=1)
    mean = np.clip(_mean(np.where(finite, numbers, 0.0), starts, np.maximum(finite_counts, 1)), low, high)
    place = np.maximum.reduceat(np.where(finite, np.arange(len(steps)), 0), starts, axis=1)
    last = np.take_along_axis(numbers, place, axis=1)
    if (finite_counts == 0).any():
        mean, low, high, last = _fill(numbers, present, finite_counts == 0, starts, (mean, low, high, last))
    return steps[starts], mean, low, high, last, counts - finite_counts, counts > 0


def _mean(numbers: Float64, starts: Int64, counts: Int64) -> Float64:
    """Mean per bucket of finite numbers, also where their sum is beyond float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.add.reduceat(numbers, starts, axis=1) / counts
    if np.isfinite(mean).all():
        return mean
    sizes = np.diff(starts, append=numbers.shape[1])
    return np.add.reduceat(numbers / np.repeat(counts, sizes, axis=1), starts, axis=1)


def _fill(
    numbers: Float64, present: Bool, bare: Bool, starts: Int64, found: tuple[Float64, Float64, Float64, Float64]
) -> tuple[Float64, Float64, Float64, Float64]:
    """Give the buckets without a finite value what their infinities and NaNs say; NaN where there is nothing."""
    nan, up, down = (
        np.logical_or.reduceat(present & kind, starts, axis=1)
        for kind in (np.isnan(numbers), np.isposinf(numbers), np.isneginf(numbers))
    )
    lost = nan | ~(up | down)
    low = np.where(lost, np.nan, np.where(down, -np.inf, np.inf))
    high = np.where(lost, np.nan, np.where(up, np.inf, -np.inf))
    middle = np.where(up & down, np.nan, low)
    mean_was, low_was, high_was, last_was = found
    return (
        np.where(bare, middle, mean_was),
        np.where(bare, low, low_was),
        np.where(bare, high, high_was),
        np.where(bare, middle, last_was),
    )
