"""Threads for the one blocking call that comes too often for the framework's own thread pool."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 16

SLOW_SECONDS, REST_SECONDS = 0.05, 1.0
"""After a call that took so long in the event loop, none is made there for a while."""


class AtOnce:
    """Makes short blocking calls in the event loop itself, which saves two changes of the thread.

    They keep everybody else waiting: one that took long, as when a disk is busy, is the last for a while.
    """

    def __init__(self) -> None:
        self._not_before = 0.0

    @property
    def open(self) -> bool:
        """Whether a call may be made now."""
        return time.monotonic() >= self._not_before

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns, or raise what it raises."""
        begin = time.monotonic()
        try:
            return function(*args, **kwargs)
        finally:
            end = time.monotonic()
            if end - begin > SLOW_SECONDS:
                self._not_before = end + REST_SECONDS


class Lane:
    """Runs functions in up to `threads` threads of its own, which wait for each other's work in one queue.

    A call costs 20 µs; through the framework's pool, which goes round the event loop twice before it begins, 70 µs,
    and at each round another busy thread may take the interpreter first. Its threads end with the process.
    """

    def __init__(self, name: str, threads: int = THREADS) -> None:
        self._name = name
        self._most = threads
        self._started = 0
        self._running = 0
        self._work: SimpleQueue[tuple[asyncio.AbstractEventLoop, asyncio.Future[Any], Callable[[], Any]]]
        self._work = SimpleQueue()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what the function returns, or raise what it raises; once begun it runs to its end."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._running += 1
        if self._running > self._started and self._started < self._most:
            self._started += 1
            threading.Thread(target=self._serve, name=f"{self._name}-{self._started}", daemon=True).start()
        self._work.put((loop, future, lambda: function(*args, **kwargs)))
        try:
            return await future
        finally:
            self._running -= 1

    def _serve(self) -> None:
        while True:
            loop, future, call = self._work.get()
            result, error = None, None
            try:
                result = call()
            except BaseException as raised:
                error = raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, future, result, error)
            del future, call, result, error


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
