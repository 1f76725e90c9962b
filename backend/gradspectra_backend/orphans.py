"""An api process that was started by another ends with it: else it would keep the port, and nobody would stop it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from typing import Any

log = logging.getLogger("uvicorn.error")


def end_with_parent() -> None:
    """Watch the process that started this one by multiprocessing, as uvicorn does; nothing where none did."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent,), name="gradspectra-parent", daemon=True).start()


def _end_after(parent: Any) -> None:
    parent.join()
    log.warning("the process that started this one is gone; this one ends, too")
    os.kill(os.getpid(), signal.SIGTERM)
