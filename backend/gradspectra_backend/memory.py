"""What bounds the memory of a server: large answers are made one at a time, and what was freed goes back at once."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ARENA_MAX, _MMAP_THRESHOLD, _TRIM_THRESHOLD = -8, -3, -1
"""Names of the settings in glibc's malloc.h."""
_ARENAS = 2
_LARGE_BYTES = 2 << 20
"""Smaller things are made of pages that are at hand, as segments of a wide run are, which are read one by one."""
_KEPT_BYTES = 16 << 20
"""Of what was freed of smaller things so much stays at hand: to get pages again takes longer than to use them."""
_one_at_a_time = threading.Lock()


@contextmanager
def large_answer() -> Iterator[None]:
    """Make an answer of tens of megabytes while nobody else does.

    Beside each other such answers would be no quicker, since they share one interpreter, and their room would add up.
    """
    with _one_at_a_time:
        yield


def give_back_freed() -> bool:
    """Have glibc return large arrays to the system as soon as they are freed; False where there is no glibc.

    Otherwise it keeps for each thread what the largest answer took.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    wanted = ((_MMAP_THRESHOLD, _LARGE_BYTES), (_TRIM_THRESHOLD, _KEPT_BYTES), (_ARENA_MAX, _ARENAS))
    return all(bool(mallopt(name, value)) for name, value in wanted)
