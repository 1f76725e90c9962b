"""Retire runs that ended long ago: what is finer than the retention keeps goes, bit by bit, behind everything else."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from gradspectra_store import Store
from gradspectra_store.compaction import claim_round, rounds_of
from gradspectra_store.retention import Retention, due_runs, note_retired, retention_in_force, take_if_due
from gradspectra_store.retiring import next_layers
from gradspectra_store.thinning import next_spectra

from gradspectra_worker.failures import tell_failure

RETAIN_SECONDS = 300.0
"""So often it is looked for runs that are due."""

RETAIN_TURNS = 100
"""Transactions at a time, for who has other things to do too."""

_log = logging.getLogger(__name__)


def retain(store: Store, run: str, wanted: Retention, now: float, *, turns: int | None = None) -> int:
    """Retire all that is to go of a run; return how many transactions that took.

    now: seconds since 1970. turns: stop after so many transactions, for a caller that shares its time among runs.

    Each is computed from a reading transaction, and written in a short one that first sees again whether the run is
    due: ended, not pinned, without a live session. Killed at any moment, run twice or by two at once, it takes away
    nothing that it did not mean to, and goes on where it was. Ends at once where somebody else compacts or retires the
    run.
    """
    done = 0
    while turns is None or done < turns:
        with store.read() as conn:
            rounds = rounds_of(conn, run)
            made = next_layers(conn, run, wanted) or next_spectra(conn, run, wanted)
        with store.write() as conn:
            if not take_if_due(conn, run, wanted, now) or not claim_round(conn, run, rounds):
                break
            if made is None:
                note_retired(conn, run, wanted, now)
                break
            made.write(conn)
        done += 1
    return done


def due(store: Store, now: float, wanted: Retention | None = None) -> tuple[Retention, list[str]]:
    """Return a retention, that in force where None is given, and the runs that are to be retired by it now."""
    with store.read() as conn:
        wanted = wanted or retention_in_force(conn) or Retention(days=0.0)
        return wanted, due_runs(conn, wanted, now)


def retain_due(
    store: Store, now: float, rested: Callable[[float], bool] = lambda _: True, *, turns: int | None = None
) -> int:
    """Retire all runs that are due, one transaction each in turn; return how many transactions that took.

    rested: called after each with the seconds it took; False ends it, and so do so many `turns`. A run that cannot be
    retired holds up no other.
    """
    wanted, runs = due(store, now)
    done = 0
    while runs:
        left = []
        for run in runs:
            begin = time.monotonic()
            try:
                wrote = retain(store, run, wanted, now, turns=1)
            except Exception as error:
                tell_failure(_log, f"retiring run {run} failed; it is tried again", error)
                continue
            done += wrote
            if not rested(time.monotonic() - begin) or done == turns:
                return done
            if wrote:
                left.append(run)
        runs = left
    return done
