"""From the second tier's results to further rows of a record: clipping undone, what is absent marked."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from gradspectra_core.records import Bool, Float64, Int64

from gradspectra.record import StepRecord
from gradspectra.second_numbers import OF_ROUNDING, OF_UPDATE, ROWS, WITH_GRADIENT

COUNTS = frozenset(("grad_zero_rows", "act_nonfinite"))
CLIPPED = ("grad_l1", "grad_dot_weight", "update_dot_grad")
"""In proportion to the gradient: to be divided by what clipping multiplied it by."""
_CLIPPED_AT, _ACT_MAX = [ROWS.index(name) for name in CLIPPED], ROWS.index("act_max")


def _rounding(rows: Float64, present: Bool) -> None:
    """Put 1 − ‖real update‖/‖intended update‖ in the place of their squares; where nothing moved it is absent."""
    real, intended = rows
    present[0] &= (real != 0) | (intended != 0)
    present[1] = False
    rows[0] = 1 - np.sqrt(real / intended)


@np.errstate(all="ignore")
def add_second(record: StepRecord, rows: Float64, present: Bool, factors: Float64, skipped: bool) -> None:
    """Add to a record with first-tier rows what of the second tier was measured at its step.

    rows, present: (len(ROWS), L), both are written to. factors: (L,) what clipping multiplied each layer's gradient by;
    where that is not above 0 the gradient is lost. skipped: the step did nothing.
    """
    for at in _CLIPPED_AT:
        rows[at] /= factors
    present[WITH_GRADIENT] &= factors > 0
    if skipped:
        rows[OF_UPDATE], present[OF_ROUNDING] = 0.0, False
    if present[OF_ROUNDING].any():
        _rounding(rows[OF_ROUNDING], present[OF_ROUNDING])
    present[_ACT_MAX] &= ~(rows[_ACT_MAX] < 0)  # no finite entry
    rows[~present] = 0.0
    floats, float_names, whole, whole_names = _kinds(tuple(np.any(present, axis=1).tolist()))
    assert record.values is not None
    assert record.present is not None
    assert record.counts_values is not None
    assert record.counts_present is not None
    record.statistics += float_names
    record.values = np.concatenate([record.values, rows.take(floats, 0).astype(np.float32)])
    record.present = np.concatenate([record.present, present.take(floats, 0)])
    record.count_statistics += whole_names
    record.counts_values = np.concatenate([record.counts_values, rows.take(whole, 0).astype(np.int64)])
    record.counts_present = np.concatenate([record.counts_present, present.take(whole, 0)])


@lru_cache(maxsize=64)
def _kinds(some: tuple[bool, ...]) -> tuple[Int64, tuple[str, ...], Int64, tuple[str, ...]]:
    """Of the rows that hold something those that become float statistics, their names, and the same of counts."""
    floats = [at for at, name in enumerate(ROWS) if some[at] and name not in COUNTS]
    whole = [at for at, name in enumerate(ROWS) if some[at] and name in COUNTS]
    names = tuple(ROWS[at] for at in floats), tuple(ROWS[at] for at in whole)
    return np.array(floats, np.int64), names[0], np.array(whole, np.int64), names[1]
