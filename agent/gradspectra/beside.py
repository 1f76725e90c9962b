"""Singular values of copies of matrices, taken in a thread of its own that gives way to the training."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from gradspectra_core.records import Float64
from torch import Tensor

from gradspectra.guard import Guard
from gradspectra.singular import measured
from gradspectra.thread_clock import ThreadClock

NICE = 19
"""What the scheduler is told of the thread: it gets what the training's threads leave of the cores."""
LOST, LOST_ALIKE = 0.25, 1.0
"""Of the processor's time that it takes, what one thread of the training is taken to lose by it: with that priority,
and where a thread has none of its own. Measured with it: −12% ± 10%, −6% ± 12% and 13% ± 52% of it, on three models."""
STARTS_WITHIN, CLOSES_WITHIN = 1.0, 5.0
FORK_WAITS = 2.0
"""Seconds that a fork waits at most for the matrix in hand: a child must not inherit a lock of the linear algebra."""


@dataclass(slots=True)
class Work:
    """A matrix whose singular values are wanted. method: as for `measured`; by which one to begin.

    values, method: what came out, once it is done; None where that failed. seconds: of a processor that it took.
    """

    matrix: Tensor | None
    method: str
    values: Float64 | None = None
    seconds: float = 0.0
    done: bool = False

    def do(self) -> None:
        """Take the singular values, and let go of the matrix."""
        assert self.matrix is not None
        began = time.thread_time()
        self.values, self.method = measured(self.matrix, self.method)
        self.seconds = time.thread_time() - began


class Beside:
    """Takes one matrix at a time. The thread starts with the first, and ends with `close`."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._last: Work | None = None
        self._process = os.getpid()
        self._closed = False
        self._clock = ThreadClock()
        self.working = threading.Lock()
        self.lost = LOST if sys.platform == "linux" else LOST_ALIKE
        """Of each second that it takes of a processor, what one thread of the training is taken to lose."""
        _all.add(self)

    @property
    def seconds_spent(self) -> float:
        """Seconds of a processor that the thread has taken so far."""
        return self._clock.seconds

    @property
    def busy(self) -> bool:
        """Whether it takes nothing now: it has a matrix in hand, is closed, or was left behind by a fork."""
        return self._closed or self._process != os.getpid() or (self._last is not None and not self._last.done)

    def give(self, matrix: Tensor, method: str) -> Work:
        """Ask for the singular values of a matrix that nobody writes to any more; only where it is not busy."""
        if self._thread is None:
            self._start()
        self._last = Work(matrix, method)
        self._work.put(self._last)
        return self._last

    def close(self, timeout: float = CLOSES_WITHIN) -> None:
        """End the thread after the matrix in hand, waiting up to `timeout` seconds."""
        self._closed = True
        if self._thread is not None and self._process == os.getpid():
            self._work.put(None)
            self._thread.join(timeout)

    def _start(self) -> None:
        """Start the thread. The number of threads that it sets for itself is also what new threads begin with, so
        that of the caller is set again."""
        threads, ready = torch.get_num_threads(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), name="gradspectra-spectra", daemon=True)
        self._thread.start()
        ready.wait(STARTS_WITHIN)
        torch.set_num_threads(threads)

    def _give_way(self) -> None:
        """Take the lowest priority, where a thread has one of its own: elsewhere its number may be a process."""
        if sys.platform == "linux":
            try:
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
            except OSError:
                self.lost = LOST_ALIKE

    def _run(self, ready: threading.Event) -> None:
        torch.set_num_threads(1)
        self._clock.begin()
        self._give_way()
        ready.set()
        while (work := self._work.get()) is not None:
            with self.working, torch.no_grad():
                self._guard.run("spectra", work.do)
            work.matrix = None
            self._clock.note()
            work.done = True
        self._clock.end()


_all: weakref.WeakSet[Beside] = weakref.WeakSet()
_held: list[Beside] = []


def _before_fork() -> None:
    _held[:] = [one for one in _all if one.working.acquire(timeout=FORK_WAITS)]


def _after_fork() -> None:
    while _held:
        _held.pop().working.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
