"""The border that training never sees an exception through: what failed is counted, said once, and switched off."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

log = logging.getLogger("gradspectra")

FAILURES_BEFORE_OFF = 3

P = ParamSpec("P")
R = TypeVar("R")


class Guard:
    """Runs the stages of the agent. A stage that has failed three times is off for the rest of the session."""

    def __init__(self) -> None:
        self._failures: dict[str, int] = {}
        self.off: dict[str, str] = {}
        """Stages that are switched off, each with the error that did it."""

    def failures(self, stage: str) -> int:
        """How often a stage has failed so far."""
        return self._failures.get(stage, 0)

    def run(self, stage: str, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """Return what work returns; None where the stage is off or has just failed."""
        if stage in self.off:
            return None
        try:
            return work(*args, **kwargs)
        except Exception as error:
            self._failed(stage, error)
            return None

    def _failed(self, stage: str, error: Exception) -> None:
        count = self._failures.get(stage, 0) + 1
        self._failures[stage] = count
        if count == 1:
            log.warning("gradspectra: %s failed (%r); training goes on without it", stage, error, exc_info=error)
        if count >= FAILURES_BEFORE_OFF:
            self.off[stage] = f"switched off after {count} failures, the last: {error!r}"
            log.warning("gradspectra: %s is switched off after %d failures", stage, count)
