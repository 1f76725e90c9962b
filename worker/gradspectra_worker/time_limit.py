"""An end to a call that goes on and on: a receiver whose answer drips is within every limit on a single read."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

_CONNECTED = ("connect_tcp.complete", "start_tls.complete")


class TimeLimit:
    """Breaks off the connections of the calls that are given `trace`, once the block has lasted `seconds`.

    The call then fails as if the other side had closed. exceeded: whether it came to that.
    """

    def __init__(self, seconds: float) -> None:
        self.exceeded = False
        self._timer = threading.Timer(seconds, self._break_off)
        self._timer.daemon = True
        self._socket: Any = None

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    def trace(self, event: str, about: Mapping[str, Any]) -> None:
        """Note the connection: httpx's extension `trace`, which is told of each of its steps."""
        if event.endswith(_CONNECTED):
            self._socket = about["return_value"].get_extra_info("socket")
            if self.exceeded:
                self._break_off()

    def _break_off(self) -> None:
        self.exceeded = True
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
