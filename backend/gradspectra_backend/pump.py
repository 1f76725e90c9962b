"""Live events between processes: what is announced on Redis goes into this process's hub, and the other way round."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import redis.asyncio
from gradspectra_worker.announce import LIVE_CHANNEL
from redis.exceptions import RedisError

from gradspectra_backend.audience import AUDIENCE
from gradspectra_backend.live import RESYNC, Hub

log = logging.getLogger(__name__)

CHANNEL = "gradspectra:live"
PAUSE_SECONDS = 0.5
"""Between two attempts to reach Redis again."""


class Pump:
    """Forwards the announcements on Redis to the hub, reconnecting for ever.

    heard: gets each of them; audience: is called when a process tells that it has live streams open.

    After each lost connection streams are told to ask anew, because announcements were missed; the database has all.
    """

    def __init__(
        self, url: str, hub: Hub, heard: Callable[[dict[str, Any]], None], audience: Callable[[], None]
    ) -> None:
        self._url = url
        self._hub = hub
        self._heard = heard
        self._audience = audience
        self._task: asyncio.Task[None] | None = None
        self.connected = False

    def problem(self) -> str | None:
        """What is wrong with Redis, None where it answers."""
        return None if self.connected else "Redis cannot be reached; records are stored and derived once it is back"

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._task = asyncio.create_task(self._run(), name="live-pump")

    async def stop(self) -> None:
        """End it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        lost = False
        while True:
            try:
                async with redis.asyncio.from_url(self._url) as client, client.pubsub() as subscription:
                    await subscription.subscribe(LIVE_CHANNEL)
                    self.connected = True
                    if lost:
                        log.warning("live events of other processes are back")
                        self._hub.publish(RESYNC)
                    lost = False
                    async for message in subscription.listen():
                        if message["type"] == "message":
                            self._forward(message["data"])
            except (RedisError, OSError) as error:
                if not lost:
                    log.warning("live events of other processes are away, Redis cannot be reached: %s", error)
                lost = True
            finally:
                self.connected = False
            await asyncio.sleep(PAUSE_SECONDS)

    def _forward(self, data: bytes) -> None:
        """Pass one announcement on; what is none, as of another version, costs a line in the log."""
        try:
            announcement = json.loads(data)
            if announcement["type"] == AUDIENCE:
                self._audience()
                return
            self._heard(announcement)
            self._hub.publish(announcement)
        except (ValueError, TypeError, KeyError) as error:
            said = f"{type(error).__name__}: {error}"
            log.warning("not an announcement on %s (%s): %r", LIVE_CHANNEL, said, data[:100])
