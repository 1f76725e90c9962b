"""Answers made piece by piece, put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from gradspectra_core.buckets import Bucketed, bucket

from gradspectra_store.levels import Levels


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


def merged_damage(readers: Iterable[Levels]) -> tuple[tuple[int, int], ...]:
    """Return the ranges of steps, first and last, that damaged blocks have lost; those that touch as one."""
    found: list[tuple[int, int]] = []
    for first, stop in sorted((one.first, one.stop) for reader in readers for one in reader.damaged):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], stop - 1)
        else:
            found.append((first, stop - 1))
    return tuple(found)
