"""Several ranks that stop at the same step: rank 0 names one ahead in the job's key-value store, the others read it.

No collective is added: a rank that waited for one while another is ahead would hold up the training.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

from torch import distributed

from gradspectra.errors import InstabilityError
from gradspectra.guard import Guard
from gradspectra.record import StepRecord
from gradspectra.record_queue import Unmade
from gradspectra.transport import Transport

AHEAD_SECONDS, AHEAD_STEPS = 3.0, 8
"""How far ahead the step is named, so that every rank has read it when it comes there."""
LOOK_SECONDS = 0.5
"""How often the other ranks read."""


class Silent(Transport):
    """The sending side of a rank that only follows the steps: nothing leaves the process."""

    def start(self) -> None:
        """Start nothing."""

    def record(self, record: StepRecord | Unmade) -> None:
        """Forget the record."""


class Together:
    """Lets a stop take effect on all ranks at the step that rank 0 names. Made on every rank, in the same order."""

    def __init__(self, store: Any, rank: int, guard: Guard) -> None:
        self._store = store
        self._rank = rank
        self._guard = guard
        self._at: int | None = None
        self._error = InstabilityError("")
        self._next_look = 0.0
        self._seen, self._taken, self._pace = time.monotonic(), -1, math.inf

    def act(self, react: Callable[[], None], taken: int) -> None:
        """Do what an alert asks for; raises InstabilityError once the named step is taken, not before.

        react: may raise it now. taken: steps so far, of this rank. Where the store cannot be used it is raised at once.
        """
        now = time.monotonic()
        if taken > self._taken:
            if self._taken >= 0:
                self._pace = (now - self._seen) / (taken - self._taken)
            self._seen, self._taken = now, taken
        try:
            react()
        except InstabilityError as error:
            if self._at is None and not self._guard.run("stop_on", self._name, taken, error):
                raise
        if self._at is None and self._rank and now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._guard.run("stop_on", self._look)
        if self._at is not None and taken >= self._at:
            raise self._error

    def _name(self, taken: int, error: InstabilityError) -> bool:
        at = taken + AHEAD_STEPS + int(AHEAD_SECONDS / max(self._pace, 1e-3))
        self._store.set("stop", json.dumps([at, str(error)]))
        self._at, self._error = at, error
        return True

    def _look(self) -> None:
        if self._store.check(["stop"]):
            self._at, text = json.loads(self._store.get("stop"))
            self._error = InstabilityError(f"rank 0 stops: {text}")


def job_store() -> Any:
    """A part of the job's key-value store: of the n-th call of this rank, shared with the n-th calls of the others."""
    store = distributed.distributed_c10d._get_default_store()
    number = store.add(f"gradspectra/made/{distributed.get_rank()}", 1)
    return distributed.PrefixStore(f"gradspectra/{number}", store)  # type: ignore[attr-defined]


def together(rank: int, guard: Guard) -> Together | None:
    """What lets the ranks of this job stop together; None for a process alone, or without a store."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    store = guard.run("stop_on", job_store)
    return None if store is None else Together(store, rank, guard)
