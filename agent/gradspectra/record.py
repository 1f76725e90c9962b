"""What the measuring side hands to the sending side: the numbers of one step, already on the host."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from gradspectra_core.layers import LayerTable
from gradspectra_core.records import SPECTRUM_OF, Bool, Float32, Float64, Int64
from numpy.typing import NDArray

GRADIENT, WEIGHT, UPDATE = SPECTRUM_OF


@dataclass(slots=True)
class SpectrumRecord:
    """One spectrum. layer: index into the record's table; of: one of SPECTRUM_OF.

    rows, columns: shape of the matrix. aggregates: (7,) float64 in the order of core's AGGREGATES.
    index, values: (P,), P ≤ 96, the singular values kept for drawing (descending) with their index among all.
    step: the step it was measured at, when that is an earlier one than the record's.
    """

    layer: int
    of: str
    method: str
    rows: int
    columns: int
    aggregates: Float64
    index: Int64
    values: NDArray[Any]
    step: int | None = None


@dataclass(slots=True)
class StepRecord:
    """Everything known of one step; the sender takes it over, so its arrays must not be written to afterwards.

    step: counts from 1. time: seconds since 1970. scalars: float64 numbers by name, counts: int64 numbers by name;
    what was not measured is absent (NaN is a value). table: the L layers that values, counts and spectra speak of.
    values, present: (K, L) for the K names in statistics; present None means all are there.
    counts_values, counts_present: (J, L) for the J names in count_statistics.
    """

    step: int
    time: float
    scalars: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    table: LayerTable | None = None
    statistics: tuple[str, ...] = ()
    values: Float32 | None = None
    present: Bool | None = None
    count_statistics: tuple[str, ...] = ()
    counts_values: Int64 | None = None
    counts_present: Bool | None = None
    spectra: list[SpectrumRecord] = field(default_factory=list)

    def withhold(self, statistics: Container[str]) -> None:
        """Leave these statistics out at this step."""
        for row, name in enumerate(self.statistics):
            if name in statistics and self.values is not None and self.present is not None:
                self.values[row], self.present[row] = 0.0, False


def unclipped(spectrum: SpectrumRecord, factor: float) -> SpectrumRecord:
    """A spectrum, that of the gradient as it was before it was multiplied by factor; ranks and entropy stay."""
    if spectrum.of != GRADIENT or factor == 1.0 or not factor > 0:
        return spectrum
    powers = np.array([1, 2, 1, 4, 0, 0, 0], np.float64)
    values = (spectrum.values / factor).astype(spectrum.values.dtype)
    return replace(spectrum, aggregates=spectrum.aggregates / factor**powers, values=values)
