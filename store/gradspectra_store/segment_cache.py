"""Decoded parts of segments, kept between reads: segments never change, so nothing here ever goes stale."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Protocol

CACHE_BYTES = 64 * 2**20
_OVERHEAD = 400  # bytes of Python objects around an entry, about


class Sized(Protocol):
    """What can be kept: anything that knows its size in bytes."""

    @property
    def nbytes(self) -> int:
        """Bytes that keeping it costs."""


class SegmentCache:
    """The parts used last, up to a number of bytes. Safe from any thread."""

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Any | None:
        """Return the part kept under `key`, or None."""
        with self._lock:
            part = self._kept.get(key)
            if part is not None:
                self._kept.move_to_end(key)
            return part

    def put(self, key: Hashable, part: Sized) -> None:
        """Keep a part, dropping those not used for longest; a part larger than an eighth of all is not kept."""
        size = part.nbytes + _OVERHEAD
        if size > self._limit // 8:
            return
        with self._lock:
            old = self._kept.pop(key, None)
            if old is not None:
                self._bytes -= old.nbytes + _OVERHEAD
            self._kept[key] = part
            self._bytes += size
            while self._bytes > self._limit:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.nbytes + _OVERHEAD

    @property
    def nbytes(self) -> int:
        """Bytes kept now."""
        return self._bytes
