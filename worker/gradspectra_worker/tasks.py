"""The Celery tasks: each loads, calls the function that does the work, and sends what follows from it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec

from celery import current_app, shared_task
from gradspectra_store import Store
from gradspectra_store.compaction import compactable_runs

from gradspectra_worker.announce import Announcement, RedisAnnouncer
from gradspectra_worker.app import COMPACT, DELIVER, DERIVE, RETAIN, RETAIN_DUE, SWEEP, SWEEP_SECONDS
from gradspectra_worker.celery_dispatch import DirectDispatcher, clear_flag, hold_back, send_or_leave
from gradspectra_worker.compact import compact
from gradspectra_worker.deliver import deliver_due
from gradspectra_worker.derive import derive
from gradspectra_worker.failures import FOR_LATER, tell_failure, told_to_end
from gradspectra_worker.heartbeat import LivingWorkers
from gradspectra_worker.retain import RETAIN_SECONDS, RETAIN_TURNS, due, retain
from gradspectra_worker.sweep import sweep

COMPACT_TURNS = 100
"""Rounds of compaction in one task, so that it ends long before it would be stopped."""

_log = logging.getLogger(__name__)
P = ParamSpec("P")


def _or_later(work: Callable[P, None]) -> Callable[P, None]:
    """Say in one line that the database is away, full or of another version: whoever asked for the task asks again."""

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            _store(os.getpid()).check_version()  # a newer server may have migrated it meanwhile
            work(*args, **kwargs)
        except Exception as error:
            if (end := told_to_end(error)) is not None:
                raise end from None
            if not isinstance(error, FOR_LATER):
                raise
            tell_failure(_log, "left for later", error)

    return run


@shared_task(name=DERIVE)  # type: ignore[untyped-decorator]
@_or_later
def derive_run(run: str) -> None:
    """Derive a run up to its last batch, and have the alerts that changed delivered."""
    clear_flag(_redis_url(), run)  # before reading: what comes from now on is asked for anew
    alerts: list[Announcement] = []
    announcer = _announcer(os.getpid())

    def announce(announcement: Announcement) -> None:
        announcer(announcement)
        if announcement["type"] == "alert":
            alerts.append(announcement)

    try:
        derive(_store(os.getpid()), run, announce=announce)
    except Exception:
        hold_back(_redis_url(), run)
        raise
    if alerts:
        send_or_leave(current_app, DELIVER)


@shared_task(name=COMPACT)  # type: ignore[untyped-decorator]
@_or_later
def compact_run(run: str) -> None:
    """Compact a run, some rounds at a time; the sweep asks for the rest."""
    compact(_store(os.getpid()), run, turns=COMPACT_TURNS)


@shared_task(name=DELIVER)  # type: ignore[untyped-decorator]
@_or_later
def deliver_alerts() -> None:
    """Send the alerts that are due."""
    hosts = os.environ.get("GRADSPECTRA_ALERT_ALLOW_HOSTS", "")
    deliver_due(_store(os.getpid()), allow_hosts=[host for host in hosts.split(",") if host])


@shared_task(name=SWEEP)  # type: ignore[untyped-decorator]
@_or_later
def sweep_runs() -> None:
    """Find what lost messages left undone, and have the runs compacted that were derived further."""
    store = _store(os.getpid())
    sweep(store, DirectDispatcher(current_app), time.time(), _announcer(os.getpid()))
    send_or_leave(current_app, DELIVER, expires=SWEEP_SECONDS)
    with store.read() as conn:
        due = compactable_runs(conn)
    for run in due:
        send_or_leave(current_app, COMPACT, run, expires=SWEEP_SECONDS)
    _living(os.getpid()).swept()


@shared_task(name=RETAIN)  # type: ignore[untyped-decorator]
@_or_later
def retain_run(run: str) -> None:
    """Retire a run that is still due, some transactions at a time; the next look asks for the rest."""
    store, now = _store(os.getpid()), time.time()
    wanted, runs = due(store, now)
    if run in runs:
        retain(store, run, wanted, now, turns=RETAIN_TURNS)


@shared_task(name=RETAIN_DUE)  # type: ignore[untyped-decorator]
@_or_later
def retain_runs() -> None:
    """Have the runs retired that are due."""
    for run in due(_store(os.getpid()), time.time())[1]:
        send_or_leave(current_app, RETAIN, run, expires=RETAIN_SECONDS)


@cache
def _store(pid: int) -> Store:  # noqa: ARG001
    """Open the database once per process: connections do not survive a fork."""
    return Store.open(os.environ["GRADSPECTRA_DATABASE_URL"], migrate=False)


@cache
def _living(pid: int) -> LivingWorkers:  # noqa: ARG001
    return LivingWorkers(_redis_url())


@cache
def _announcer(pid: int) -> RedisAnnouncer:  # noqa: ARG001
    return RedisAnnouncer(_redis_url())


def _redis_url() -> str:
    return os.environ["GRADSPECTRA_REDIS_URL"]
