"""What the compiled pass brings of the second tier, written to its results on the host, of many layers at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gradspectra_core.records import Bool, Float32, Float64, Int64

from gradspectra.fused import FusedPass, FusedRows
from gradspectra.second_numbers import OF_FORWARD, OF_GRADIENT, OF_MEDIAN, OF_SUMS, OF_UPDATE


@np.errstate(over="ignore")
def put_rows(results: Float32, present: Bool, fused: FusedRows) -> None:
    """Write what came with the first tier. results, present: (len(ROWS), L)."""
    columns = fused.columns
    results[OF_GRADIENT, columns] = [fused.row(name) for name in ("grad_l1", "grad_zero_rows", "grad_dot_weight")]
    results[OF_UPDATE, columns] = -fused.factor * fused.row("update_dot_grad")
    first_sq = fused.row("first_sq") / fused.corrections[:, 0] ** 2
    results[OF_SUMS, columns] = [first_sq, fused.row("second_sum") / fused.corrections[:, 1]]
    present[OF_GRADIENT, columns] = fused.row("grad_nonfinite") < fused.entries
    present[OF_UPDATE, columns] = fused.update
    present[OF_SUMS, columns] = fused.moments


@np.errstate(invalid="ignore")
def put_medians(results: Float32, present: Bool, fused: FusedRows, compiled: FusedPass, layers: Sequence[int]) -> None:
    """Measure the medians of these layers, as far as the pass has found their moments, and write them."""
    wanted = np.zeros(present.shape[1], np.bool_)
    wanted[list(layers)] = True
    chosen = np.flatnonzero(fused.moments & wanted[fused.columns])
    if len(chosen):
        medians = compiled.medians(fused, chosen) / fused.corrections[chosen, 1]
        results[OF_MEDIAN, fused.columns[chosen]] = np.sqrt(medians)
        present[OF_MEDIAN, fused.columns[chosen]] = True


@np.errstate(over="ignore")
def put_outputs(results: Float32, present: Bool, columns: Int64, largest: Float64, lost: Float64) -> None:
    """Add outputs of the modules of n layers to what other outputs of theirs have brought; see SecondTier."""
    sizes, counts = results[OF_FORWARD]
    before = present[OF_FORWARD.start, columns]
    sizes[columns] = np.maximum(largest, np.where(before, sizes[columns], -1.0))
    counts[columns] = lost + np.where(before, counts[columns], 0.0)
    present[OF_FORWARD, columns] = True
