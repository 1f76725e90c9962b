"""What the routes share: settings, store, live hub, dispatcher and counters, hung on the application's state."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from gradspectra_store import Store
from gradspectra_worker.dispatch import Dispatcher
from gradspectra_worker.heartbeat import LivingWorkers

from gradspectra_backend.audience import Audience
from gradspectra_backend.live import Hub
from gradspectra_backend.login_limit import LoginLimit
from gradspectra_backend.meters import Meters
from gradspectra_backend.news import AlertNews
from gradspectra_backend.settings import Settings

Announce = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Context:
    """One server process.

    announce: tells every process's live streams that something changed. dispatcher_problem: says what keeps new
    records from being asked to be derived, None if nothing does. workers: those that derive, None where this process
    does so by itself. hosts: names of this server that the check of a call before has let pass.
    """

    settings: Settings
    store: Store
    hub: Hub
    dispatcher: Dispatcher
    announce: Announce
    meters: Meters
    news: AlertNews
    audience: Audience
    dispatcher_problem: Callable[[], str | None]
    workers: LivingWorkers | None = None
    logins: LoginLimit = field(default_factory=LoginLimit)
    clock: Callable[[], float] = field(default=time.time)
    hosts: AbstractSet[str] = frozenset()

    @property
    def stores_at_once(self) -> bool:
        """Whether a short batch is stored without waiting for a disk or for a server on the network."""
        local = self.store.dialect == "sqlite" and self.workers is None
        return local and self.settings.sqlite_synchronous == "NORMAL"


def context_of(request: Request) -> Context:
    """The context of the process that answers `request`."""
    context: Context = request.app.state.context
    return context


async def _shared(request: Request) -> Context:
    """As `context_of`; FastAPI would send a plain function to a thread at each call."""
    return context_of(request)


Shared = Annotated[Context, Depends(_shared)]
