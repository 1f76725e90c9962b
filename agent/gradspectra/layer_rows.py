"""From the first tier's results to the layer numbers of a record: clipping undone, what is absent marked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from gradspectra_core.records import Bool, Float32, Float64, Int64

from gradspectra.layer_marks import LayerMarks
from gradspectra.measure import HIGH, LOW, SQUARE, UPDATE, WEIGHT


@dataclass(slots=True)
class LayerRows:
    """Rows of a record, in the order of STATISTICS and COUNT_STATISTICS; norm: of the whole gradient before clipping.

    values, present: (5, L), or (7, L) where drift was measured; counts, counts_present: (1, L). factors: (L,) what
    clipping multiplied each gradient by, also where only the user knows; foreign: how much of that only the user knows.
    update_norm: of the whole update, None where unknown.
    """

    values: Float32
    present: Bool
    counts: Int64
    counts_present: Bool
    factors: Float64
    foreign: float
    norm: float | None
    update_norm: float | None


@np.errstate(all="ignore")
def layer_rows(
    rows: Float64,
    marks: LayerMarks,
    factors: Float64,
    part_sq: Float64 | None,
    drift: Float64 | None,
    foreign_norm: float | None,
) -> LayerRows:
    """Make the layer numbers of one step.

    rows: (5, L) as measured. factors: (L,) what clipping multiplied each gradient by. part_sq: (L,), drift: (2, L),
    ‖W − W₀‖² and ⟨W, W₀⟩; None where they were not measured. An inner product of exactly 0 is absent: the layer has
    started from zero, and has no direction. foreign_norm: the whole norm before a clip that only the user knows of.
    """
    square, largest, finite = _gradient(rows, marks)
    whole = np.where(marks.gradient, rows[SQUARE], 0.0) / factors**2
    norm = math.sqrt(whole.sum()) if marks.gradient.any() else None
    foreign = 1.0
    if foreign_norm is not None and norm is not None and 0 < norm < foreign_norm < np.inf:
        foreign = norm / foreign_norm
        factors = factors * foreign
        norm = foreign_norm
    update = rows[UPDATE] * marks.factor
    count, layers = 5 if drift is None else 7, len(square)
    values, present = np.zeros((count, layers), np.float32), np.ones((count, layers), np.bool_)
    values[0], values[1], values[2], values[4] = square / factors**2, largest / factors, rows[WEIGHT], update
    present[:2] = finite & (factors > 0)
    present[3], present[4] = False, marks.update
    if part_sq is not None:
        values[3], present[3] = part_sq, marks.gradient
        present[3, list(marks.repaired)] = False
    if drift is not None:
        values[5:], present[6] = drift, drift[1] != 0
    values[~present] = 0.0
    counts = np.zeros((1, layers), np.int64)
    for layer, left in marks.repaired.items():
        counts[0, layer] = left.nonfinite
    known = bool(marks.update.any() and marks.update[marks.gradient].all())
    update_norm = math.sqrt(update[marks.update].sum()) if known else None
    return LayerRows(values, present, counts, marks.gradient[None], factors, foreign, norm, update_norm)


def _gradient(rows: Float64, marks: LayerMarks) -> tuple[Float64, Float64, Bool]:
    """Sum of squares and largest absolute number of the finite entries, and where there are any."""
    square = rows[SQUARE].copy()
    largest = np.maximum(-rows[LOW], rows[HIGH])
    finite = marks.gradient.copy()
    for layer, left in marks.repaired.items():
        if left.nonfinite:
            square[layer], largest[layer], finite[layer] = left.square, left.largest, left.any_finite
    return square, largest, finite
