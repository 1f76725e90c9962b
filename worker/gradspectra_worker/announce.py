"""Hints to live listeners that something is new. They carry no data and may be lost: the database is the truth."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from typing import Any

import redis

from gradspectra_worker.redis_client import hasty_client

LIVE_CHANNEL = "gradspectra:live"

Announcement = dict[str, Any]
"""{"type": "run", "run", "batch", "step", "derived_step"} after records were derived, with "state" alone
where a run is lost, and with "changed_at" (seconds since 1970) where it was derived again, and
{"type": "alert", "run", "batch", "step", "alert": {…}} for each alert that opened or changed. Server processes tell
each other {"type": "audience"} while they have live streams open."""

Announce = Callable[[Announcement], None]

AWAY_SECONDS = 5.0
"""How long a Redis that did not answer is left alone."""

_log = logging.getLogger(__name__)


class RedisAnnouncer:
    """Publishes announcements as JSON on `gradspectra:live`. Safe to call from any thread.

    A Redis that is away costs one line in the log: announcements are dropped then, but one every few seconds that
    tries it again. A training job waits for the answer to its batch while the batch is announced.
    """

    def __init__(self, url: str) -> None:
        self._redis = hasty_client(url)
        self._away = False
        self._next_try = 0.0

    def __call__(self, announcement: Announcement) -> None:
        """Publish one announcement, or drop it."""
        if self._away:
            if time.monotonic() < self._next_try:
                return
            self._next_try = time.monotonic() + AWAY_SECONDS  # other threads need not wait for this try
        try:
            self._redis.publish(LIVE_CHANNEL, json.dumps(announcement))
            self._away = False
        except redis.RedisError as error:
            if not self._away:
                _log.warning("live listeners are told nothing until Redis is back: %s", error)
            self._away, self._next_try = True, time.monotonic() + AWAY_SECONDS

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()
