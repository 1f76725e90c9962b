"""Processor time of a thread, as another thread reads it."""

from __future__ import annotations

import threading
import time


class ThreadClock:
    """`begin` and `end` are called in the thread itself; where the system has no such clock it is read at `note`."""

    def __init__(self) -> None:
        self._clock: int | None = None
        self._noted = 0.0

    def begin(self) -> None:
        """The thread has started."""
        if hasattr(time, "pthread_getcpuclockid"):
            self._clock = time.pthread_getcpuclockid(threading.get_ident())

    def note(self) -> float:
        """Seconds so far, from within the thread."""
        self._noted = time.thread_time()
        return self._noted

    def end(self) -> None:
        """The thread is about to end: its clock may soon be another's."""
        self._clock = None
        self.note()

    @property
    def seconds(self) -> float:
        """Seconds so far, from any thread; of one that a fork left behind, what it had noted."""
        clock = self._clock
        if clock is not None:
            try:
                return max(time.clock_gettime(clock), self._noted)
            except OSError:
                self._clock = None
        return self._noted
