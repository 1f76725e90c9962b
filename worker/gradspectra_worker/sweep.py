"""The sweep: finds what lost messages left undone. Runs every few seconds, anywhere, and twice without harm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradspectra_store import Store
from gradspectra_store.derived import dirty_runs
from gradspectra_store.lying_beside import free_left
from gradspectra_store.rederivations import tell_derived_again
from gradspectra_store.runs import mark_lost

from gradspectra_worker.announce import Announce

if TYPE_CHECKING:
    from gradspectra_worker.dispatch import Dispatcher


def sweep(store: Store, dispatcher: Dispatcher, now: float, announce: Announce) -> list[str]:
    """Request every run that is behind its last batch, mark silent runs as lost, move SQLite's log into the file.

    What processes that were killed have left beside a run goes bit by bit, some at each sweep.

    now: seconds since 1970. announce: is told of the runs that are lost or were derived again. Returns the runs
    requested. Deliveries that are due are the dispatcher's to send.
    """
    with store.read() as conn:
        behind = dirty_runs(conn)
    for run in behind:
        dispatcher.request(run)
    with store.write() as conn:
        lost = mark_lost(conn, now)
        again = tell_derived_again(conn)
    for announcement in [*({"type": "run", "run": run, "state": "lost"} for run in lost), *again]:
        announce(announcement)
    free_left(store, now)
    store.checkpoint()
    return behind
