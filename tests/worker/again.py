"""Runs that are derived, to be derived again."""

from __future__ import annotations

from typing import Any

from gradspectra_store import Store
from gradspectra_store.alerts import list_alerts
from gradspectra_store.lying_beside import next_portion
from gradspectra_worker.compact import compact
from gradspectra_worker.derive import derive
from worker.synthetic import batches, faulty, numbers, start, take_in


def derived_run(store: Store, steps: int = 400, *, compacted: bool = False, most: int = 1000) -> str:
    """A run with faults, or as many of its batches, derived; the newest steps are in segments."""
    started = start(store)
    take_in(store, started, batches(faulty(steps), started.session)[:most])
    derive(store, started.run)
    if compacted:
        compact(store, started.run)
    return started.run


def resumed(store: Store, run: str, at: int, steps: int, **faults: Any) -> str:
    """Another attempt, derived and compacted."""
    two = start(store, resume=run, start_step=at)
    take_in(store, two, batches(numbers(steps, 9, first=at + 1) | faults, two.session))
    derive(store, run)
    compact(store, run)
    return two.session


def without_batch(found: dict[str, Any]) -> dict[str, Any]:
    """An outcome, but for the number of the newest batch, as which deriving again counts, and where states lie."""
    for name in ("batch", "states_turned"):
        found["cursor"][0].pop(name)
    return found


def alert(store: Store, run: str, rule: str) -> dict[str, Any]:
    """The run's alert of a rule."""
    with store.read() as conn:
        return next(one for one in list_alerts(conn, run)[0] if one["rule"] == rule)


def all_alerts(store: Store, run: str) -> list[dict[str, Any]]:
    """The run's alerts."""
    with store.read() as conn:
        return list_alerts(conn, run)[0]


def nothing_beside(store: Store, run: str) -> bool:
    """Whether the run has nothing in the database but what is its own."""
    with store.read() as conn:
        return next_portion(conn, run) is None
