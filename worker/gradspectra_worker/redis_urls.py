"""One Redis address in the two spellings that its clients want."""

from __future__ import annotations

_SOCKET = "redis+socket://"
_UNIX = "unix://"


def for_celery(url: str) -> str:
    """Return the address as Celery spells it: a Unix socket is `redis+socket://`."""
    return _SOCKET + url.removeprefix(_UNIX) if url.startswith(_UNIX) else url


def for_redis(url: str) -> str:
    """Return the address as redis-py spells it: a Unix socket is `unix://`."""
    return _UNIX + url.removeprefix(_SOCKET) if url.startswith(_SOCKET) else url
