"""What the compiled pass brings of the second tier, written to its results on the host, of many layers at once."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from gradspectra_core.records import Bool, Float32, Float64, Int64

from gradspectra.compiling import ROW
from gradspectra.fused import FusedPass, FusedRows
from gradspectra.second_numbers import OF_FORWARD, OF_GRADIENT, OF_MEDIAN, OF_SUMS, OF_UPDATE

_OF_FUSED = [ROW.index(name) for name in ("grad_l1", "grad_zero_rows", "grad_dot_weight")]
"""What of the compiled pass OF_GRADIENT is."""


@np.errstate(over="ignore")
def put_rows(results: Float32, present: Bool, fused: FusedRows, at: slice | Int64) -> None:
    """Write what came with the first tier. results, present: (len(ROWS), L); at: where the layers of that are."""
    results[OF_GRADIENT, at] = fused.rows.take(_OF_FUSED, 1).T
    results[OF_UPDATE, at] = -fused.factor * fused.row("update_dot_grad")
    results[OF_SUMS.start, at] = fused.row("first_sq") / fused.corrections[:, 0] ** 2
    results[OF_SUMS.start + 1, at] = fused.row("second_sum") / fused.corrections[:, 1]
    present[OF_GRADIENT, at] = fused.row("grad_nonfinite") < fused.entries
    present[OF_UPDATE, at] = fused.update
    present[OF_SUMS, at] = fused.moments


@np.errstate(invalid="ignore")
def put_medians(
    results: Float32, present: Bool, fused: FusedRows, compiled: FusedPass, layers: Collection[int]
) -> None:
    """Measure the medians of these layers, as far as the pass has found their moments, and write them."""
    found = fused.moments
    if len(layers) < present.shape[1]:
        wanted = np.zeros(present.shape[1], np.bool_)
        wanted[list(layers)] = True
        found = found & wanted[fused.columns]
    chosen = found.nonzero()[0]
    if len(chosen):
        medians, columns = compiled.medians(fused, chosen) / fused.corrections[chosen, 1], fused.columns[chosen]
        results[OF_MEDIAN, columns] = np.sqrt(medians)
        present[OF_MEDIAN, columns] = True


@np.errstate(over="ignore")
def put_outputs(results: Float32, present: Bool, columns: Int64, largest: Float64, lost: Float64) -> None:
    """Add outputs of the modules of n layers to what other outputs of theirs have brought; see SecondTier."""
    sizes, counts = results[OF_FORWARD]
    before = present[OF_FORWARD.start, columns]
    if before.any():
        largest = np.maximum(largest, np.where(before, sizes[columns], -1.0))
        lost = lost + np.where(before, counts[columns], 0.0)
    sizes[columns], counts[columns] = largest, lost
    present[OF_FORWARD, columns] = True
