"""Which widths of buckets are kept, and the numbers they go by: 8, 64, 128, 256, 512, 1024 … steps.

Level n, from 1 on, is buckets of 8^n steps, each made of eight of the level below. From level 2 on, where a level takes
little room, buckets of two and of four of a level are kept beside it, as levels 32 + n and 64 + n: an answer then reads
as many buckets as it gives, not four times as many.
"""

from __future__ import annotations

FACTOR = 8
TOP = 17
"""Buckets of 8^17 steps hold any step a run can have."""

_WIDEST = 20
_BETWEEN = 32
_BITS = FACTOR.bit_length() - 1
_FIRST_WITH_BETWEEN = 2


def width_of(level: int) -> int:
    """Steps in a bucket of a level; ValueError for a number that no level has."""
    doublings, whole = divmod(level, _BETWEEN)
    if not 0 <= whole <= _WIDEST or not 0 <= doublings < _BITS or (doublings and whole < _FIRST_WITH_BETWEEN):
        raise ValueError(f"no level has the number {level}")
    width: int = FACTOR**whole << doublings
    return width


def below(level: int) -> int:
    """The level whose buckets a level is made of: eight of them, or two or four."""
    doublings, whole = divmod(level, _BETWEEN)
    return whole if doublings else whole - 1


def halfway(level: int) -> tuple[int, ...]:
    """The levels kept between a whole level and the next: of two and of four of its buckets; none below level 2."""
    return () if level < _FIRST_WITH_BETWEEN else tuple(level + _BETWEEN * doublings for doublings in range(1, _BITS))


def level_at(width: int) -> int:
    """The coarsest level kept whose buckets fit in `width` steps, a power of two; ValueError below 1."""
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    whole, doublings = divmod(width.bit_length() - 1, _BITS)
    return whole + (_BETWEEN * doublings if whole >= _FIRST_WITH_BETWEEN else 0)


def finer_than(level: int) -> tuple[int, ...]:
    """The levels that are kept with narrower buckets, level 0 first."""
    found = (one for whole in range(TOP + 1) for one in (whole, *halfway(whole)))
    return tuple(one for one in found if width_of(one) < width_of(level))


def ladder(level: int) -> tuple[int, ...]:
    """The levels from 1 on that a level is made by way of, itself the last; none for level 0."""
    whole = level % _BETWEEN
    by_way_of = tuple(range(1, whole + 1))
    return by_way_of if whole == level else (*by_way_of, level)
