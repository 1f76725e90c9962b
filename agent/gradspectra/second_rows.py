"""From the second tier's results to further rows of a record: clipping undone, what is absent marked."""

from __future__ import annotations

import numpy as np
from gradspectra_core.records import Bool, Float64

from gradspectra.record import StepRecord
from gradspectra.second_numbers import OF_ROUNDING, OF_UPDATE, ROWS, WITH_GRADIENT

COUNTS = frozenset(("grad_zero_rows", "act_nonfinite"))
CLIPPED = ("grad_l1", "grad_dot_weight", "update_dot_grad")
"""In proportion to the gradient: to be divided by what clipping multiplied it by."""


def _rounding(rows: Float64, present: Bool) -> None:
    """Put 1 − ‖real update‖/‖intended update‖ in the place of their squares; where nothing moved it is absent."""
    real, intended = rows
    present[0] &= (real != 0) | (intended != 0)
    present[1] = False
    rows[0] = 1 - np.sqrt(real / intended)


@np.errstate(all="ignore")
def add_second(record: StepRecord, rows: Float64, present: Bool, factors: Float64, skipped: bool) -> None:
    """Add to a record with first-tier rows what of the second tier was measured at its step.

    rows, present: (len(ROWS), L). factors: (L,) what clipping multiplied each layer's gradient by; where that is not
    above 0 the gradient is lost. skipped: the step did nothing.
    """
    rows, present = rows.copy(), present.copy()
    rows[[ROWS.index(name) for name in CLIPPED]] /= factors
    present[WITH_GRADIENT] &= factors > 0
    if skipped:
        rows[OF_UPDATE], present[OF_ROUNDING] = 0.0, False
    _rounding(rows[OF_ROUNDING], present[OF_ROUNDING])
    present[ROWS.index("act_max")] &= ~(rows[ROWS.index("act_max")] < 0)  # no finite entry
    rows[~present] = 0.0
    some: Bool = np.any(present, axis=1)
    floats = [at for at, name in enumerate(ROWS) if some[at] and name not in COUNTS]
    whole = [at for at, name in enumerate(ROWS) if some[at] and name in COUNTS]
    assert record.values is not None
    assert record.present is not None
    assert record.counts_values is not None
    assert record.counts_present is not None
    record.statistics += tuple(ROWS[at] for at in floats)
    record.values = np.concatenate([record.values, rows[floats].astype(np.float32)])
    record.present = np.concatenate([record.present, present[floats]])
    record.count_statistics += tuple(ROWS[at] for at in whole)
    record.counts_values = np.concatenate([record.counts_values, rows[whole].astype(np.int64)])
    record.counts_present = np.concatenate([record.counts_present, present[whole]])
