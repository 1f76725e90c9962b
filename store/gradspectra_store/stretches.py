"""Stretches of steps of one attempt each: cut, taken out of one another, and aligned to buckets."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Stretch(NamedTuple):
    """The steps in [first, stop) of an attempt."""

    attempt: int
    first: int
    stop: int


def united(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Return the same steps in order, those that touch as one; empty ones left out."""
    found: list[Stretch] = []
    for one in sorted(stretches):
        if one.first >= one.stop:
            continue
        if found and found[-1].attempt == one.attempt and one.first <= found[-1].stop:
            found[-1] = Stretch(one.attempt, found[-1].first, max(found[-1].stop, one.stop))
        else:
            found.append(one)
    return found


def within(stretches: Iterable[Stretch], other: Stretch) -> list[Stretch]:
    """Return what of the stretches lies in another of the same attempt."""
    found = []
    for attempt, first, stop in stretches:
        first, stop = max(first, other.first), min(stop, other.stop)
        if attempt == other.attempt and first < stop:
            found.append(Stretch(attempt, first, stop))
    return found


def without(one: Stretch, gone: Sequence[Stretch]) -> list[Stretch]:
    """Return what is left of a stretch. gone: as `united` gives, any attempts."""
    if not gone:
        return [one] if one.first < one.stop else []
    begin = max(bisect_right(gone, one) - 1, 0)
    end = bisect_left(gone, Stretch(one.attempt, one.stop, one.stop))
    left, at = [], one.first
    for other in within(gone[begin:end], one):
        if at < other.first:
            left.append(Stretch(one.attempt, at, other.first))
        at = other.stop
    if at < one.stop:
        left.append(Stretch(one.attempt, at, one.stop))
    return left


def whole(one: Stretch, width: int) -> Stretch:
    """Return the part of a stretch that whole buckets of `width` steps make up; it may be empty."""
    return Stretch(one.attempt, -(-one.first // width) * width, one.stop // width * width)
