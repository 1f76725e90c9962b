"""Compact a run: its derived segments become blocks and a pyramid above them, round by round, behind ingest."""

from __future__ import annotations

import logging

from gradspectra_store import Store
from gradspectra_store.compaction import derived_batch, note_compacted, rounds_of, write_round
from gradspectra_store.rounds import next_round

_log = logging.getLogger(__name__)


def compact(store: Store, run: str, *, turns: int | None = None) -> int:
    """Compact all that can be compacted of a run; return how many rounds that took.

    turns: stop after so many rounds, for a caller that shares its time among runs.

    A round is computed from a reading transaction and written in a short one of its own, which takes the segments
    away that its blocks replace: killed at any moment, run twice or by two at once, it loses and doubles nothing. A
    segment that cannot be read back stays as it is. Ends at once where somebody else compacts the run, or it is gone.
    """
    done = 0
    while turns is None or done < turns:
        with store.read() as conn:
            made = next_round(conn, run)
            batch, rounds = derived_batch(conn, run), rounds_of(conn, run)
        with store.write() as conn:
            if made is None:
                note_compacted(conn, run, batch, rounds)
                break
            if not write_round(conn, made):
                break
        for one in made.damaged:
            steps = f"steps {one.first_step} to {one.last_step} of attempt {one.attempt}"
            _log.error("run %s: a segment of %s of %s is damaged and stays as it is", run, one.kind, steps)
        done += 1
    return done
