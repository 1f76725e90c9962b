"""Several ranks that stop at the same step: rank 0 names one ahead in the job's key-value store, the others read it.

No collective is added: a rank that waited for one while another is ahead would hold up the training.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import distributed

from gradspectra.errors import InstabilityError
from gradspectra.guard import Guard
from gradspectra.record import StepRecord
from gradspectra.record_queue import Unmade
from gradspectra.transport import Transport

AHEAD_STEPS = 8
"""How far ahead the step is named: ranks that reduce gradients together are at most one apart."""
HEAR_SECONDS = 3.0
"""How long rank 0 waits for every other rank to hear that it wants to stop; then it names a step all the same."""
LOOK_SECONDS = 0.5
"""How often the other ranks look whether it does; once they have heard, they look at each step for the one it names."""


class Silent(Transport):
    """The sending side of a rank that only follows the steps: nothing leaves the process."""

    def start(self) -> None:
        """Start nothing."""

    def record(self, record: StepRecord | Unmade) -> None:
        """Forget the record."""


class Together:
    """Lets a stop take effect on all ranks at the step that rank 0 names. Made on every rank, in the same order.

    Rank 0 says that it wants to stop, and names the step only when all others look at each step: how long a step takes
    is not known before, and the first ones take longer than others.
    """

    def __init__(self, store: Any, rank: int, guard: Guard, ranks: int = 2) -> None:
        self._store = store
        self._rank = rank
        self._others = [_heard(other) for other in range(1, ranks)]
        self._guard = guard
        self._at: int | None = None
        self._error: InstabilityError | None = None
        self._next_look = 0.0
        self._until = 0.0

    def act(self, react: Callable[[], None], taken: int) -> None:
        """Do what an alert asks for; raises InstabilityError once the named step is taken, not before.

        react: may raise it now. taken: steps so far, of this rank. Where the store cannot be used it is raised at once.
        """
        try:
            react()
        except InstabilityError as error:
            if self._rank or (self._error is None and not self._guard.run("stop_on", self._ask, error)):
                raise
        if self._at is None and self._rank:
            self._guard.run("stop_on", self._look)
        elif self._at is None and self._error is not None and not self._guard.run("stop_on", self._name, taken):
            raise self._error
        if self._at is not None and self._error is not None and taken >= self._at:
            raise self._error

    def _ask(self, error: InstabilityError) -> bool:
        self._store.set("stop", str(error))
        self._error, self._until = error, time.monotonic() + HEAR_SECONDS
        return True

    def _name(self, taken: int) -> bool:
        if self._store.check(self._others) or time.monotonic() >= self._until:
            at = taken + AHEAD_STEPS
            self._store.set("at", str(at))
            self._at = at
        return True

    def _look(self) -> None:
        if self._error is None:
            now = time.monotonic()
            if now < self._next_look:
                return
            self._next_look = now + LOOK_SECONDS
            if not self._store.check(["stop"]):
                return
            text = self._store.get("stop").decode()
            self._store.set(_heard(self._rank), "1")
            self._error = InstabilityError(f"rank 0 stops: {text}")
        if self._store.check(["at"]):
            self._at = int(self._store.get("at"))


def _heard(rank: int) -> str:
    """The key by which a rank says that it has heard."""
    return f"heard/{rank}"


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
    return None if store is None else Together(store, rank, guard, distributed.get_world_size())
