"""Live events inside one process: whoever changes a run announces it, every open stream hears it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from fastapi.sse import ServerSentEvent

from gradspectra_backend.answers import dumps, plain
from gradspectra_backend.lately import Lately

QUEUE_LENGTH = 256
RETRY_MS = 1000
"""How long a browser waits before it connects again."""

RESYNC: dict[str, Any] = {"type": "resync"}
DELETED = "deleted"
"""State of a run that is not there any more."""


class Listener:
    """One open stream: the runs it asked for (None: all) and what it has not sent yet, at most QUEUE_LENGTH."""

    def __init__(self, runs: Iterable[str] | None) -> None:
        self.runs = frozenset(runs) if runs is not None else None
        self._waiting: deque[dict[str, Any]] = deque()
        self._wake = asyncio.Event()

    def wants(self, announcement: dict[str, Any]) -> bool:
        """Whether the announcement is for this stream."""
        return announcement["type"] == "resync" or self.runs is None or announcement.get("run") in self.runs

    def put(self, announcement: dict[str, Any]) -> None:
        """Queue an announcement; a stream that is too slow loses all it waited for and is told to ask anew."""
        if len(self._waiting) >= QUEUE_LENGTH:
            self._waiting.clear()
            announcement = RESYNC
        self._waiting.append(announcement)
        self._wake.set()

    def wake(self) -> None:
        """Make `take` return although nothing was put, because the server is closing."""
        self._wake.set()

    async def take(self) -> list[dict[str, Any]]:
        """Wait until there is something, and take it all; empty only when the server is closing."""
        await self._wake.wait()
        self._wake.clear()
        taken = list(self._waiting)
        self._waiting.clear()
        return taken


class Hub:
    """The open streams of this process. `announce` may be called from any thread, the rest in the event loop."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.closing = False
        self.lately = Lately()

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start to accept announcements; they are dropped before this."""
        self._loop = loop

    def close(self) -> None:
        """End every stream, now and from now on: a server must not wait for streams that never end."""
        self.closing = True
        for listener in self._listeners:
            listener.wake()

    def close_soon(self) -> None:
        """The same from a signal handler or another thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.close)

    def announce(self, announcement: dict[str, Any]) -> None:
        """Tell every stream that wants it. Losing one does no harm: the database is the truth.

        The loop is not woken where no stream is open: one that opens now is told when the run was last announced.
        """
        self.lately.note(announcement)  # before the look for streams: one that opens meanwhile looks here after it
        loop = self._loop
        if self._listeners and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self.publish, announcement)

    def publish(self, announcement: dict[str, Any]) -> None:
        """As `announce`, for callers in the event loop."""
        self.lately.note(announcement)
        for listener in self._listeners:
            if listener.wants(announcement):
                listener.put(announcement)

    def subscribe(self, runs: Iterable[str] | None) -> Listener:
        """A new stream's queue; it misses nothing from here on."""
        listener = Listener(runs)
        self._listeners.add(listener)
        return listener

    def unsubscribe(self, listener: Listener) -> None:
        """Forget a stream that has ended."""
        self._listeners.discard(listener)

    def __len__(self) -> int:
        return len(self._listeners)


def to_event(announcement: dict[str, Any]) -> ServerSentEvent:
    """An announcement as it goes out: `run` events carry the id that Last-Event-ID brings back, `run.batch`.

    That of a run that is deleted is `run.deleted`.
    """
    data = dumps(plain({name: value for name, value in announcement.items() if name != "type"})).decode()
    kind = str(announcement["type"])
    reached = DELETED if announcement.get("state") == DELETED else announcement.get("batch")
    if kind == "run" and reached is not None:
        return ServerSentEvent(event=kind, raw_data=data, id=f"{announcement['run']}.{reached}")
    return ServerSentEvent(event=kind, raw_data=data)


async def stream(
    hub: Hub, runs: Iterable[str] | None, backlog: Callable[[], Awaitable[list[dict[str, Any]]]]
) -> AsyncIterator[ServerSentEvent]:
    """The events of one stream: first what was missed, then what comes.

    It ends when the server closes, and when all runs that it asked for are deleted.

    It begins with `opened`: how long ago runs were last announced. A page that was loaded just before learns from it
    which of its answers may be older than that.

    backlog: reads what the client may have missed; called after the subscription, so that nothing falls between.
    """
    listener = hub.subscribe(runs)
    try:
        yield ServerSentEvent(event="opened", raw_data=dumps(hub.lately.told(listener.runs)).decode(), retry=RETRY_MS)
        told: dict[str, tuple[Any, ...]] = {}
        waiting = await backlog()
        while not hub.closing:
            for entry in waiting:
                if entry["type"] == "run":
                    if DELETED in (before := told.get(entry["run"], ())) or before == _position(entry):
                        continue
                    told[entry["run"]] = _position(entry)
                yield to_event(entry)
            if listener.runs and all(DELETED in told.get(run, ()) for run in listener.runs):
                break
            waiting = await listener.take()
            if listener.runs and RESYNC in waiting:  # that a run was deleted may be what was lost
                waiting += [entry for entry in await backlog() if entry["type"] == "run"]
    finally:
        hub.unsubscribe(listener)


def _position(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry.get(name) for name in ("batch", "step", "derived_step", "state", "changed_at"))
