"""Numbers as they were recorded, cut and put together: what level 0 is made of, wherever it was stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.blocks import Recorded
from gradspectra_core.records import Bool, Int64


def between(part: Recorded, first: int, stop: int) -> Recorded:
    """Return the steps in [first, stop) alone."""
    if not len(part.steps) or (first <= part.steps[0] and part.steps[-1] < stop):
        return part
    begin, end = np.searchsorted(part.steps, (first, stop))
    cut = slice(int(begin), int(end))
    present = None if part.present is None else part.present[:, cut]
    return Recorded(part.steps[cut], part.values[:, cut], present)


def overlaid(parts: Sequence[Recorded], rows: int) -> Recorded:
    """Put parts over the union of their steps, as `rows` rows; of two numbers in one place the later part's counts.

    A part may have fewer rows: those it lacks are absent from it. Steps at which nothing is present are left out.
    """
    parts = [part for part in parts if len(part.steps)]
    if not parts:
        return Recorded(np.empty(0, np.int64), np.empty((rows, 0), np.float32), None)
    if len(parts) == 1 and parts[0].present is None and parts[0].values.shape[0] == rows:
        return parts[0]
    steps = np.concatenate([part.steps for part in parts])
    if (steps[1:] > steps[:-1]).all():
        if all(part.present is None and part.values.shape[0] == rows for part in parts):
            return Recorded(steps, np.concatenate([part.values for part in parts], axis=1), None)
    else:
        steps = np.unique(steps)
    values = np.zeros((rows, len(steps)), np.result_type(*{part.values.dtype for part in parts}))
    present = np.zeros(values.shape, np.bool_)
    for part in parts:
        own = np.searchsorted(steps, part.steps)
        at = slice(int(own[0]), int(own[-1]) + 1) if own[-1] - own[0] + 1 == len(own) else own
        held = slice(0, part.values.shape[0])
        if part.present is None:
            values[held, at], present[held, at] = part.values, True
        else:
            values[held, at] = np.where(part.present, part.values, values[held, at])
            present[held, at] |= part.present
    return _recorded(steps, values, present)


def _recorded(steps: Int64, values: NDArray[Any], present: Bool) -> Recorded:
    if present.all():
        return Recorded(steps, values, None)
    some: Bool = np.any(present, axis=0)
    if not some.all():
        steps, values, present = steps[some], values[:, some], present[:, some]
    return Recorded(steps, values, None if present.all() else present)
