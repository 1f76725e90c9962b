"""What the store answers and the figures are made of: buckets over steps, with the non-finite counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.records import Bool, Float64, Int64


@dataclass(frozen=True, slots=True)
class Buckets:
    """One series at the N positions of its answer.

    mean, min, max, last: (N,) float64, of the finite values of the bucket; where the bucket has values but no
    finite one, NaN if there is a NaN, else ±inf. nonfinite: (N,) int64. present: (N,) bool, False where the bucket
    has no value at all (the numbers are then NaN and mean nothing).
    """

    mean: Float64
    min: Float64
    max: Float64
    last: Float64
    nonfinite: Int64
    present: Bool


@dataclass(frozen=True, slots=True)
class Series:
    """Scalars or run-level metrics over one axis. x: (N,), one entry per bucket that holds anything.

    damaged: first and last steps of ranges that could not be read back; what is there of them is missing.
    """

    axis: str
    x: NDArray[np.float64] | Int64
    series: dict[str, Buckets]
    damaged: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class LayerSeries:
    """One statistic or metric of L layers at N positions; all arrays (L, N), as in Buckets; damaged as in Series.

    retired: first and last step and width of ranges of which only wider buckets are left than were asked for.
    """

    statistic: str
    axis: str
    x: NDArray[np.float64] | Int64
    layers: tuple[str, ...]
    roles: tuple[str, ...]
    depths: tuple[int, ...]
    mean: Float64
    min: Float64
    max: Float64
    nonfinite: Int64
    present: Bool
    damaged: tuple[tuple[int, int], ...] = ()
    retired: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Spectrum:
    """One spectrum as stored. index, singular_values: (P,), P ≤ 96, descending."""

    layer: str
    of: str
    step: int
    attempt: int
    method: str
    rows: int
    columns: int
    nuclear: float
    frobenius_sq: float
    operator: float
    fourth: float
    entropy: float
    k90: int
    k99: int
    index: Int64
    singular_values: NDArray[np.float64]
