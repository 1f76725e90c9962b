"""Ranks that act on alerts at the same step: rank 0 names one ahead in the job's key-value store, the others read it.

No collective is added: a rank that waited for one while another is ahead would hold up the training.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import distributed

from gradspectra.errors import InstabilityError
from gradspectra.guard import Guard
from gradspectra.reactions import Alert, Reactions, reason
from gradspectra.record import StepRecord
from gradspectra.record_queue import Unmade
from gradspectra.transport import Transport

AHEAD_STEPS = 8
"""How far ahead the step is named: ranks that reduce gradients together are at most one apart."""
HEAR_SECONDS = 3.0
"""How long rank 0 waits for every other rank to hear of an event; then it names a step all the same."""
LOOK_SECONDS = 0.5
"""How often the other ranks look for one; once they have heard, they look at each step for the one it names."""


class Silent(Transport):
    """The sending side of a rank that only follows the steps: nothing leaves the process."""

    def start(self) -> None:
        """Start nothing."""

    def record(self, record: StepRecord | Unmade) -> None:
        """Forget the record."""


@dataclass(frozen=True, slots=True)
class Event:
    """What all ranks are to do at one step: call on_alert for these alerts, and stop if there is a reason to."""

    alerts: list[Alert]
    stop: str | None


class Together:
    """Lets events take effect on all ranks at the step that rank 0 names. Made on every rank, in the same order.

    Rank 0 tells of an event, and names its step only when all others look at each step: how long a step takes is not
    known before, and the first ones take longer than others. What comes meanwhile is the next event.
    on_alert: the user's function on the other ranks.
    """

    def __init__(
        self, store: Any, rank: int, guard: Guard, ranks: int = 2, on_alert: Callable[[Alert], None] | None = None
    ) -> None:
        self._store = store
        self._rank = rank
        self._others = range(1, ranks)
        self._guard = guard
        self._on_alert = on_alert
        self._number = 0
        self._at: int | None = None
        self._event: Event | None = None
        self._next_look = 0.0
        self._until = 0.0

    def act(self, reactions: Reactions, stop_at_step: int | None, taken: int) -> None:
        """Do what is to be done at this step; raises InstabilityError for a stop, and what on_alert raises.

        reactions: of rank 0. stop_at_step: what the server asked for. taken: steps so far, of this rank. Where the
        store cannot be used rank 0 does it at once.
        """
        if self._rank:
            if self._at is None:
                self._guard.run("on_alert and stop_on", self._look)
        elif not self._lead(reactions, stop_at_step, taken):
            self._at = taken
        event = self._event
        if event is None or self._at is None or taken < self._at:
            return
        self._number, self._event, self._at = self._number + 1, None, None
        for alert in event.alerts:
            if self._rank == 0:
                reactions.do(alert)
            elif self._on_alert is not None:
                self._on_alert(alert)
        if event.stop is not None:
            raise InstabilityError(f"rank 0 stops: {event.stop}" if self._rank else event.stop)

    def _lead(self, reactions: Reactions, stop_at_step: int | None, taken: int) -> bool:
        """Tell the others of an event, or name its step; False where that failed."""
        if self._event is None:
            alerts, stop = reactions.take(), reactions.asked(stop_at_step, taken)
            if not alerts and stop is None:
                return True
            severe = next((at for at, alert in enumerate(alerts) if reactions.severe(alert)), None)
            if severe is not None:
                alerts, stop = alerts[: severe + 1], reason(alerts[severe])
            self._event = Event(alerts, stop)
            return bool(self._guard.run("on_alert and stop_on", self._tell, self._event))
        return self._at is not None or bool(self._guard.run("on_alert and stop_on", self._name, taken))

    def _key(self, name: str) -> str:
        return f"{self._number}/{name}"

    def _tell(self, event: Event) -> bool:
        self._store.set(self._key("event"), json.dumps([event.alerts, event.stop], default=str))
        self._until = time.monotonic() + HEAR_SECONDS
        return True

    def _name(self, taken: int) -> bool:
        heard = [self._key(_heard(other)) for other in self._others]
        if self._store.check(heard) or time.monotonic() >= self._until:
            at = taken + AHEAD_STEPS
            self._store.set(self._key("at"), str(at))
            self._at = at
        return True

    def _look(self) -> None:
        if self._event is None:
            now = time.monotonic()
            if now < self._next_look:
                return
            self._next_look = now + LOOK_SECONDS
            if not self._store.check([self._key("event")]):
                return
            self._event = Event(*json.loads(self._store.get(self._key("event"))))
            self._store.set(self._key(_heard(self._rank)), "1")
        if self._store.check([self._key("at")]):
            self._at = int(self._store.get(self._key("at")))


def _heard(rank: int) -> str:
    """The key by which a rank says that it has heard."""
    return f"heard/{rank}"


def job_store() -> Any:
    """A part of the job's key-value store: of the n-th call of this rank, shared with the n-th calls of the others."""
    store = distributed.distributed_c10d._get_default_store()
    number = store.add(f"gradspectra/made/{distributed.get_rank()}", 1)
    return distributed.PrefixStore(f"gradspectra/{number}", store)  # type: ignore[attr-defined]


def together(rank: int, guard: Guard, on_alert: Callable[[Alert], None] | None) -> Together | None:
    """What lets the ranks of this job act together; None for a process alone, or without a store."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    store = guard.run("on_alert and stop_on", job_store)
    return None if store is None else Together(store, rank, guard, distributed.get_world_size(), on_alert)
