"""Whether the disk is quick enough for short batches to be stored in the event loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SLOW_SECONDS = 0.05
"""A store that takes so long had to wait for the disk or a processor: by itself it takes one or two milliseconds."""
REST_SECONDS = 10.0
"""For so long after it the event loop stores nothing itself."""


class Promptness:
    """Remembers the last store that was slow, which others of this process had to wait for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = -float("inf")

    @property
    def good(self) -> bool:
        """Whether no store was slow lately."""
        return self._clock() >= self._until

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around a store in the event loop, whether it succeeds or not."""
        began = self._clock()
        try:
            yield
        finally:
            now = self._clock()
            if now - began >= SLOW_SECONDS:
                self._until = now + REST_SECONDS
