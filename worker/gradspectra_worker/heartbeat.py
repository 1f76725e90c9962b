"""Which Celery workers live, told over Redis: each says so every few seconds, by the clock of Redis itself."""

from __future__ import annotations

import logging
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gradspectra_worker.redis_urls import for_redis

BEAT_SECONDS = 5.0
SILENT_SECONDS = 20.0
"""A worker that was not heard for this long counts as gone."""

_KEY = "gradspectra:workers"
_TIMEOUT = 1.0
_log = logging.getLogger(__name__)


class Heartbeat:
    """One worker's. name: tells it from all others."""

    def __init__(self, redis_url: str, name: str) -> None:
        self._redis = _client(redis_url)
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
    """Counts them."""

    def __init__(self, redis_url: str) -> None:
        self._redis = _client(redis_url)

    def count(self) -> int:
        """Return how many workers were heard lately. Raises redis.RedisError where no answer came within a second."""
        return int(self._redis.zcount(_KEY, _now(self._redis) - SILENT_SECONDS, "+inf"))

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()


def _client(url: str) -> Any:
    """A client that gives up after a second."""
    bounds = {"socket_timeout": _TIMEOUT, "socket_connect_timeout": _TIMEOUT, "retry": Retry(NoBackoff(), 0)}
    return redis.Redis.from_url(for_redis(url), **bounds)


def _now(client: Any) -> float:
    seconds, micros = client.time()
    return float(seconds + micros / 1e6)
