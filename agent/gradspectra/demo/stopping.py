"""When a job of the demo ends before its last step: at Ctrl-C, at SIGTERM, or when the demo itself is gone."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn


class Stop:
    """Listens for the signals from construction on; `asked` is looked at once a step. Main thread only."""

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._event = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._heard)

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        self._event.set()

    @property
    def asked(self) -> bool:
        """True once the job should end: it then closes its run as any other job does."""
        return self._event.is_set() or os.getppid() != self._parent

    def sleep(self, seconds: float) -> None:
        """Wait, but no longer than until a signal comes. Returns at once for seconds ≤ 0."""
        if seconds > 0:
            self._event.wait(seconds)


def leave() -> NoReturn:
    """End the process at once, its run being closed: taking torch's modules apart alone would take a second or two."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
