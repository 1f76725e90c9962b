"""Beat's scheduler: Celery's own, but for what it logs."""

from __future__ import annotations

import logging
from typing import Any

from celery.beat import PersistentScheduler, SchedulingError

_log = logging.getLogger(__name__)


class Scheduler(PersistentScheduler):  # type: ignore[misc]
    """Celery's own writes 160 lines for each task that it cannot send, every ten seconds while Redis is away."""

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Send a task that is due; what cannot be sent costs one line in the log, and is due again at its next time."""
        try:
            self.apply_async(entry, producer=producer, advance=False)
        except SchedulingError as error:
            _log.error("%s", error)
