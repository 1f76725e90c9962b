"""Whose turn it is, where not everything that is wanted has room in one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def in_turn(
    entries: Sequence[T], last: int, place: Callable[[T], int], size: Callable[[T], int], room: float
) -> list[T]:
    """Of entries those that have room, at least one: first those with places after the last, then from the start."""
    found: list[T] = []
    for entry in sorted(entries, key=lambda entry: (place(entry) <= last, place(entry))):
        room -= size(entry)
        if found and room < 0:
            break
        found.append(entry)
    return found


class Turns:
    """Goes round numbered entries, as many at a time as have room (math.inf: all, in any order).

    sizes: of each entry; may be written to.
    """

    def __init__(self, sizes: Sequence[int], room: float) -> None:
        self.sizes = list(sizes)
        self._room = room
        self._last = -1

    def take(self, wanted: Sequence[int]) -> list[int]:
        """Of the wanted entries those whose turn it is."""
        if self._room == math.inf:
            return list(wanted)
        found = in_turn(wanted, self._last, int, self.sizes.__getitem__, self._room)
        self._last = found[-1] if found else self._last
        return found
