"""Answers made piece by piece, put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from gradspectra_core.buckets import Bucketed, bucket

from gradspectra_store.levels import Levels
from gradspectra_store.stretches import Stretch


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
    """Return the ranges of steps, first and last, that damaged blocks and segments have lost."""
    return first_and_last(one for reader in readers for one in reader.damaged)


def first_and_last(stretches: Iterable[Stretch]) -> tuple[tuple[int, int], ...]:
    """Return the first and last steps of stretches of any attempts; those that touch as one."""
    found: list[tuple[int, int]] = []
    for first, stop in sorted((one.first, one.stop) for one in stretches):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], stop - 1)
        else:
            found.append((first, stop - 1))
    return tuple(found)
