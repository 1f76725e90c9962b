"""A client of Redis that gives up after a second, for what may be lost."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from gradspectra_worker.redis_urls import for_redis

TIMEOUT = 1.0


def hasty_client(url: str) -> Any:
    """Return a client that tries once; redis-py's own tries eleven times, for many seconds where nothing answers."""
    bounds = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT, "retry": Retry(NoBackoff(), 0)}
    return redis.Redis.from_url(for_redis(url), **bounds)
