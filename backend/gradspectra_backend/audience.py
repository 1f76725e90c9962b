"""Whether anybody has a page open that shows runs live: a training job need not hurry while nobody looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from gradspectra_backend.live import Hub

AUDIENCE = "audience"
"""Type of the announcement by which a process tells the others that it has live streams open."""

TELL_SECONDS, BELIEVE_SECONDS = 2.0, 6.0
"""How often that is told, and for how long it is believed."""


class Audience:
    """Of all server processes: this one's live streams, and what the others have told."""

    def __init__(self, hub: Hub, clock: Callable[[], float] = time.monotonic) -> None:
        self._hub = hub
        self._clock = clock
        self._elsewhere: float | None = None

    @property
    def present(self) -> bool:
        """Whether a live stream is open here, or was lately in another process."""
        elsewhere = self._elsewhere is not None and self._clock() - self._elsewhere < BELIEVE_SECONDS
        return len(self._hub) > 0 or elsewhere

    def heard(self) -> None:
        """A process has told that it has live streams open."""
        self._elsewhere = self._clock()

    async def tell(self, announce: Callable[[dict[str, Any]], None]) -> None:
        """Tell the other processes, as long as streams are open here, until cancelled."""
        while True:
            if len(self._hub):
                await asyncio.to_thread(announce, {"type": AUDIENCE})
            await asyncio.sleep(TELL_SECONDS)
