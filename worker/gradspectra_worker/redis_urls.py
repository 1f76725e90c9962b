"""One Redis address: which ones are taken, and the two spellings that its clients want."""

from __future__ import annotations

from urllib.parse import urlsplit

_SOCKET = "redis+socket://"
_UNIX = "unix://"
_KINDS = ("redis://", "rediss://", _UNIX, _SOCKET)


def checked(url: str) -> str:
    """Return the address as it is; raises ValueError, which says nothing of its password, where it is none of Redis."""
    if not url.startswith(_KINDS):
        raise ValueError(
            "must start with redis://, rediss:// or unix://; no other broker, such as RabbitMQ (amqp://), can take the "
            "place of Redis, over which live events and the workers' signs of life go too"
        )
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise ValueError(
            "its port must be a number from 0 to 65535; the characters / ? # and @ of a password are written "
            "%2F %3F %23 and %40"
        ) from None
    return url


def for_celery(url: str) -> str:
    """Return the address as Celery spells it: a Unix socket is `redis+socket://`."""
    return _SOCKET + url.removeprefix(_UNIX) if url.startswith(_UNIX) else url


def for_redis(url: str) -> str:
    """Return the address as redis-py spells it: a Unix socket is `unix://`."""
    return _UNIX + url.removeprefix(_SOCKET) if url.startswith(_SOCKET) else url
