"""Hints to live listeners that something is new. They carry no data and may be lost: the database is the truth."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import redis

from gradspectra_worker.redis_urls import for_redis

LIVE_CHANNEL = "gradspectra:live"

Announcement = dict[str, Any]
"""{"type": "run", "run", "batch", "step", "derived_step"} after records were derived, with "state" alone
where a run is lost, and
{"type": "alert", "run", "batch", "step", "alert": {…}} for each alert that opened or changed. Server processes tell
each other {"type": "audience"} while they have live streams open."""

Announce = Callable[[Announcement], None]

_log = logging.getLogger(__name__)


class RedisAnnouncer:
    """Publishes announcements as JSON on `gradspectra:live`; a Redis that is away costs a line in the log."""

    def __init__(self, url: str) -> None:
        self._redis = redis.Redis.from_url(for_redis(url), socket_timeout=2.0, socket_connect_timeout=2.0)

    def __call__(self, announcement: Announcement) -> None:
        """Publish one announcement."""
        try:
            self._redis.publish(LIVE_CHANNEL, json.dumps(announcement))
        except redis.RedisError as error:
            _log.warning("live listeners were not told about run %s: %s", announcement.get("run"), error)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()
