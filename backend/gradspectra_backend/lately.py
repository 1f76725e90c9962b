"""When each run was last announced: what a stream that opens tells of the time before it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container
from typing import Any

MOST_RUNS = 100
"""Runs remembered. A stream opens within seconds after its page was loaded; more than these is told as not known."""


class Lately:
    """Seconds since each of the last runs was announced, and how far back that goes. Safe to call from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock()
        self._runs: dict[str, float] = {}

    def note(self, announcement: dict[str, Any]) -> None:
        """Remember an announcement; after a `resync` nothing before it is known."""
        with self._lock:
            if announcement["type"] == "resync":
                self._runs.clear()
                self._since = self._clock()
            elif "run" in announcement:
                run = str(announcement["run"])
                self._runs.pop(run, None)
                self._runs[run] = self._clock()
                if len(self._runs) > MOST_RUNS:
                    self._since = self._runs.pop(next(iter(self._runs)))

    def told(self, wanted: Container[str] | None) -> dict[str, Any]:
        """{"seconds", "runs"}: all is known of the last `seconds`; runs (None: all) with the seconds since then."""
        with self._lock:
            now, since, runs = self._clock(), self._since, dict(self._runs)
        ages = {run: round(now - at, 3) for run, at in runs.items() if wanted is None or run in wanted}
        return {"seconds": round(now - since, 3), "runs": ages}
