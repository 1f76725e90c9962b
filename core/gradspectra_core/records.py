"""What one batch of records holds: columns over steps, layer statistics and spectra, with what is absent marked.

Absent is never a float value: every value array has a `present` array of the same shape. NaN and ±inf are values.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.layers import LayerTable

Float64 = NDArray[np.float64]
Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

AGGREGATES = ("nuclear", "frobenius_sq", "operator", "fourth", "entropy", "k90", "k99")
"""Columns of `SpectrumBlock.aggregates`, in this order."""

SPECTRUM_OF = ("gradient", "weight", "update")
DRAWN_SINGULAR_VALUES = 96
"""At most this many singular values of a spectrum are kept for drawing."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Named numbers per step. names: C names; values, present: (C, S)."""

    names: tuple[str, ...]
    values: Float64 | Int64
    present: Bool


@dataclass(frozen=True, slots=True)
class LayerBlock:
    """Layer statistics of the steps at which they were taken.

    steps: (T,) strictly increasing, each one of the batch's steps. digest: of the layer table (L layers).
    values, present: (K, T, L) float32 for the K names in `statistics`.
    counts, counts_present: (J, T, L) int64 for the J names in `count_statistics`.
    """

    digest: str
    steps: Int64
    statistics: tuple[str, ...]
    values: Float32
    present: Bool
    count_statistics: tuple[str, ...]
    counts: Int64
    counts_present: Bool


@dataclass(frozen=True, slots=True)
class SpectrumBlock:
    """N spectra. digest: of the layer table that `layer` indexes.

    step, layer, rows, columns, length: (N,) int64; of, method: N strings; aggregates: (N, 7) float64 in the order
    of AGGREGATES; index, values: (N, P), P ≤ 96, the singular values kept for drawing (descending) with their
    index among all; entries at and beyond `length[i]` are padding (0).
    """

    digest: str
    step: Int64
    layer: Int64
    rows: Int64
    columns: Int64
    length: Int64
    of: tuple[str, ...]
    method: tuple[str, ...]
    aggregates: Float64
    index: Int64
    values: Float32


@dataclass(frozen=True, slots=True)
class Gap:
    """A range of steps [first, last] of which `what` ("all", "layers" or "spectra") was dropped before sending."""

    first: int
    last: int
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """What one POST of records carries: S steps of one session, in order.

    sequence: number of the batch in its session, from 1. complete_through: the last step this session will never
    add to. steps: (S,) int64 strictly increasing; times: (S,) float64 seconds since 1970. layer_table: sent with
    the first batch that uses it, None after. S may be 0 (a batch with gaps or late spectra only).
    """

    session: str
    sequence: int
    complete_through: int
    steps: Int64
    times: Float64
    scalars: Columns
    counts: Columns
    layer_table: LayerTable | None = None
    layers: LayerBlock | None = None
    spectra: SpectrumBlock | None = None
    gaps: tuple[Gap, ...] = field(default=())
