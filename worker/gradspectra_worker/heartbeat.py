"""Which Celery workers live and whether they sweep, told over Redis by the clock of Redis itself."""

from __future__ import annotations

import logging
from typing import Any

import redis

from gradspectra_worker.redis_client import hasty_client

BEAT_SECONDS = 5.0
SILENT_SECONDS = 20.0
"""A worker that was not heard for this long counts as gone."""

UNSWEPT_SECONDS = 60
"""Where beat lives and workers keep up, there is a sweep every ten seconds."""

_KEY = "gradspectra:workers"
_SWEPT = "gradspectra:swept"
_log = logging.getLogger(__name__)


class Heartbeat:
    """One worker's. name: tells it from all others."""

    def __init__(self, redis_url: str, name: str) -> None:
        self._redis = hasty_client(redis_url)
        self._name = name

    def beat(self) -> None:
        """Say that the worker lives. A Redis that is away costs a line in the log: nothing else would work either."""
        try:
            now = _now(self._redis)
            with self._redis.pipeline() as together:
                together.zadd(_KEY, {self._name: now})
                together.zremrangebyscore(_KEY, "-inf", now - SILENT_SECONDS)
                together.execute()
        except redis.RedisError as error:
            _log.warning("nobody was told that this worker lives: %s", error)

    def end(self) -> None:
        """Say that the worker is about to go, and give the connections back."""
        try:
            self._redis.zrem(_KEY, self._name)
        except redis.RedisError as error:
            _log.warning("nobody was told that this worker goes: %s", error)
        self._redis.close()


class LivingWorkers:
    """Counts them, and knows whether they sweep."""

    def __init__(self, redis_url: str) -> None:
        self._redis = hasty_client(redis_url)

    def count(self) -> int:
        """Return how many workers were heard lately. Raises redis.RedisError where no answer came within a second."""
        return int(self._redis.zcount(_KEY, _now(self._redis) - SILENT_SECONDS, "+inf"))

    def swept(self) -> None:
        """Note that a sweep was done. A Redis that is away costs a line in the log."""
        try:
            self._redis.set(_SWEPT, 1, ex=UNSWEPT_SECONDS)
        except redis.RedisError as error:
            _log.warning("nobody was told of a sweep: %s", error)

    def sweeping(self) -> bool:
        """Say whether a sweep was done in the last minute. Raises as `count`."""
        return bool(self._redis.exists(_SWEPT))

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()


def _now(client: Any) -> float:
    seconds, micros = client.time()
    return float(seconds + micros / 1e6)
