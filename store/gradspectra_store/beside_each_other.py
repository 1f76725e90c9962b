"""Large payloads decoded on several processors: to inflate them leaves the interpreter free."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

LARGE = 1 << 17
"""Bytes: what is smaller takes less time than to hand it to another thread."""
HELPERS = min(os.cpu_count() or 1, 4) - 1
"""Threads beside the one that asks; none where there is one processor."""

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")
_pools: dict[int, ThreadPoolExecutor] = {}
"""By process: a child has none of its parent's threads."""


def decoded(
    payloads: Iterable[tuple[KeyT, Any]], decode: Callable[[KeyT, Any], ValueT]
) -> Iterator[tuple[KeyT, ValueT]]:
    """Give each key with what `decode` makes of it and its payload, in any order; what it raises, this raises.

    payloads: read by the thread that asks, no further ahead than the helpers have to do.
    """
    handed: deque[tuple[KeyT, Any, Future[ValueT]]] = deque()
    for key, payload in payloads:
        future = None
        if isinstance(payload, bytes) and len(payload) >= LARGE and len(handed) < 2 * HELPERS:
            future = _handed(decode, key, payload)
        if future is None:
            yield key, decode(key, payload)
        else:
            handed.append((key, payload, future))
        while handed and handed[0][2].done():
            key, _, future = handed.popleft()
            yield key, future.result()
    while handed:
        key, payload, future = handed.pop()
        yield key, decode(key, payload) if future.cancel() else future.result()


def _handed(decode: Callable[[KeyT, Any], ValueT], key: KeyT, payload: Any) -> Future[ValueT] | None:
    """Let a helper do it; None where none can, as when the interpreter is about to end."""
    try:
        pool = _pools.get(os.getpid())
        if pool is None:
            pool = _pools.setdefault(os.getpid(), ThreadPoolExecutor(HELPERS, "gradspectra-decode"))
        return pool.submit(decode, key, payload)
    except RuntimeError:
        return None
