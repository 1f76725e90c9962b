"""Answers made piece by piece, put together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gradspectra_core.buckets import Bucketed, bucket


def joined_buckets(pieces: Sequence[Bucketed], rows: int) -> Bucketed:
    """Put the buckets of ranges of steps that follow one another side by side; none at all give N = 0 for `rows`."""
    if not pieces:
        return bucket(np.empty(0, np.int64), np.empty((rows, 0)), np.empty((rows, 0), np.bool_), 1)
    if len(pieces) == 1:
        return pieces[0]
    x, mean, low, high, last, nonfinite, present = zip(*pieces, strict=True)
    return (
        np.concatenate(x),
        np.concatenate(mean, axis=1),
        np.concatenate(low, axis=1),
        np.concatenate(high, axis=1),
        np.concatenate(last, axis=1),
        np.concatenate(nonfinite, axis=1),
        np.concatenate(present, axis=1),
    )
