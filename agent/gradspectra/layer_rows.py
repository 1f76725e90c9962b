"""From the first tier's results to the layer numbers of a record: clipping undone, what is absent marked."""

from __future__ import annotations

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
    norm = float(np.sqrt(whole.sum())) if marks.gradient.any() else None
    foreign = 1.0
    if foreign_norm is not None and norm is not None and 0 < norm < foreign_norm < np.inf:
        foreign = norm / foreign_norm
        factors = factors * foreign
        norm = foreign_norm
    lost = ~(factors > 0)
    update = rows[UPDATE] * marks.factor
    measured = [square / factors**2, largest / factors, rows[WEIGHT], part_sq, update]
    if drift is not None:
        measured += [*drift]
    values = np.stack([np.zeros_like(square) if row is None else row for row in measured]).astype(np.float32)
    unbroken = marks.gradient.copy()
    unbroken[list(marks.repaired)] = False
    everywhere = np.ones_like(unbroken)
    parts = unbroken if part_sq is not None else ~everywhere
    drifted = [] if drift is None else [everywhere, drift[1] != 0]
    present = np.stack([finite & ~lost, finite & ~lost, everywhere, parts, marks.update, *drifted])
    values[~present] = 0.0
    counts = np.zeros((1, len(square)), np.int64)
    for layer, left in marks.repaired.items():
        counts[0, layer] = left.nonfinite
    known = bool(marks.update.any() and marks.update[marks.gradient].all())
    update_norm = float(np.sqrt(update[marks.update].sum())) if known else None
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
