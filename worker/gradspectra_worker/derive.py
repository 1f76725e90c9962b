"""Derive a run from its watermark on: what came out and the new watermark are written in one transaction."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import dataclass
from itertools import count, groupby
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from gradspectra_core.alerts import Finding, Suggestion
from gradspectra_core.catalogue import RULES
from gradspectra_store import Store
from gradspectra_store.alerts import apply_findings, closed_before, supersede_alerts
from gradspectra_store.damaged import DamagedSegment, note_damaged
from gradspectra_store.derived import (
    Cursor,
    DerivedBatch,
    StoredBatch,
    advance,
    behind,
    claim,
    pending,
    save_derived,
)
from gradspectra_store.kept_states import checkpoint_state, state_before
from gradspectra_store.run_views import list_attempts
from gradspectra_store.suggestions import replace_suggestions

from gradspectra_worker.announce import Announce, Announcement
from gradspectra_worker.deriver import Deriver, spectra_metrics

STEPS_PER_TRANSACTION = 1024
"""A transaction ends with the batch that reaches this many steps, so that it never holds up writers for long."""

CHUNK = 256
"""Batches in a transaction, at most."""

CHECKPOINT_STEPS = 1000
"""The state is kept each so many steps, for attempts that resume there."""

_log = logging.getLogger(__name__)


def derive(
    store: Store, run: str, *, announce: Announce | None = None, chunk: int = CHUNK, turns: int | None = None
) -> int:
    """Derive all that may be derived of a run, `chunk` batches at most in a transaction; return how many.

    turns: stop after so many transactions, for a caller that shares its time among runs and looks again itself.

    Killed at any moment, run twice or by two workers at once, it leaves the same rows: a batch counts as derived
    exactly if its rows are there. Returns at once where another worker has the run (that one looks for more work
    after its commit) or the run is gone.
    """
    total = 0
    for turn in count(1):
        done = _derive_chunk(store, run, chunk)
        if done is None:
            return total
        total += done.batches
        if announce is not None:
            for announcement in done.announcements:
                announce(announcement)
        if turn == turns:
            break
        with store.read() as conn:  # after the lock is released: a request that found it taken is not lost
            if not behind(conn, run):
                break
    return total


@dataclass(frozen=True, slots=True)
class _Done:
    batches: int
    announcements: list[Announcement]


def _derive_chunk(store: Store, run: str, chunk: int) -> _Done | None:
    """Derive one chunk; None where there is none, or another worker has the run.

    SQLite has one writer at a time, so there a chunk is computed from a reading transaction, and written only if the
    cursor is then still where it was; ingest does not wait for the arithmetic.
    """
    if store.dialect != "sqlite":
        with store.write() as conn:
            chain = _prepared(conn, run, chunk)
            return None if chain is None else chain.write(conn)
    with store.read() as conn:
        chain = _prepared(conn, run, chunk)
    if chain is None:
        return None
    with store.write() as conn:
        cursor = claim(conn, run)
        if cursor is None or (cursor.batch, cursor.attempt) != chain.began:
            return _Done(0, [])
        return chain.write(conn)


def _prepared(conn: sa.Connection, run: str, chunk: int) -> _Chain | None:
    cursor = claim(conn, run)
    batches = [] if cursor is None else pending(conn, run, cursor.batch, chunk, steps=STEPS_PER_TRANSACTION)
    if cursor is None or not batches:
        return None
    attempts = {attempt["attempt"]: attempt for attempt in list_attempts(conn, run)}
    chain = _Chain(run, cursor, attempts)
    for stored in batches:
        if not chain.take(stored):
            break
    return chain


class _Chain:
    """A walk over batches: the state is read once before it, and all that came out is written at its end.

    began: batch and attempt of the cursor that it starts from. A batch of a newer attempt ends the walk; at the
    beginning of one it is the walk's only business, since the attempt starts from a state that was written before.
    """

    def __init__(self, run: str, cursor: Cursor, attempts: dict[int, dict[str, Any]]) -> None:
        self.began = cursor.batch, cursor.attempt
        self._run = run
        self._cursor = cursor
        self._attempts = attempts
        self._deriver = Deriver.restore(cursor.state)
        self._taken: list[StoredBatch] = []
        self._steps = 0
        self._rows: list[DerivedBatch] = []
        self._findings: list[tuple[int, Finding, float]] = []
        self._checkpoints: list[tuple[int, dict[str, Any]]] = []
        self._suggestions: tuple[list[Suggestion], int] | None = None
        self._new_attempt: int | None = None

    def take(self, stored: StoredBatch) -> bool:
        """Derive one batch; False where the walk ends, before this batch or with it.

        Batches of an older attempt that come late (its spool was sent after the run went on) and those of ranks
        above 0 give only what needs no state: they do not belong to the series that the detectors follow.
        """
        cursor, batch = self._cursor, stored.batch
        follows = stored.rank == 0 and stored.attempt >= cursor.attempt
        if follows and stored.attempt > cursor.attempt:
            if not self._taken:
                self._new_attempt = stored.attempt
            return False
        cursor.batch = stored.batch_number
        self._taken.append(stored)
        self._steps += len(batch.steps)
        if not follows:
            block = spectra_metrics(batch)
            self._rows.append(DerivedBatch(stored.attempt, stored.batch_number, None, [block] if block else []))
        else:
            self._follow(stored)
        return self._steps < STEPS_PER_TRANSACTION

    def write(self, conn: sa.Connection) -> _Done:
        """Write rows, alerts, suggestions, state and watermark in the caller's transaction."""
        changed = self._begin_attempt(conn, self._new_attempt) if self._new_attempt is not None else []
        save_derived(conn, self._run, self._rows)
        self._pass_over(conn, [one for taken in self._taken for one in taken.damaged])
        for step, state in self._checkpoints:
            checkpoint_state(conn, self._run, self._cursor.attempt, step, state)
        for attempt, group in groupby(self._findings, key=itemgetter(0)):
            changed += apply_findings(conn, self._run, attempt, [(finding, time) for _, finding, time in group], RULES)
        if self._suggestions is not None:
            replace_suggestions(conn, self._run, *self._suggestions)
        self._cursor.state = self._deriver.state()
        advance(conn, self._run, self._cursor)
        return _Done(len(self._taken), self._announcements(changed))

    def _pass_over(self, conn: sa.Connection, damaged: list[DamagedSegment]) -> None:
        """Note and say what could not be read back: nothing is derived of it."""
        note_damaged(conn, damaged)
        for one in damaged:
            steps = f"steps {one.first_step} to {one.last_step} of attempt {one.attempt}"
            _log.error("run %s: a segment of %s of %s is damaged; nothing is derived of it", one.run, one.kind, steps)

    def _follow(self, stored: StoredBatch) -> None:
        cursor, steps = self._cursor, stored.batch.steps
        environment = self._attempts[stored.attempt]["environment"]
        derived = self._deriver.derive(
            stored.batch, stored.attempt, optimizer_family(environment), optimizer_betas(environment)
        )
        self._findings += derived.findings
        self._rows.append(DerivedBatch(stored.attempt, stored.batch_number, derived.columns, derived.layer_metrics))
        before = cursor.derived_step
        if len(steps):
            cursor.derived_step = max(before, int(steps[-1]))
        if derived.suggestions is not None:
            self._suggestions = derived.suggestions, cursor.derived_step
        if cursor.derived_step // CHECKPOINT_STEPS > before // CHECKPOINT_STEPS:
            self._checkpoints.append((cursor.derived_step, deepcopy(self._deriver.state())))

    def _begin_attempt(self, conn: sa.Connection, attempt: int) -> list[dict[str, Any]]:
        """Go on from the newest state before the attempt's first step; alerts that it does not follow are closed."""
        cursor = self._cursor
        if cursor.derived_step:
            checkpoint_state(conn, self._run, cursor.attempt, cursor.derived_step, self._deriver.state())
        first = int(self._attempts[attempt]["first_step"])
        self._deriver = Deriver.restore(state_before(conn, self._run, first, attempt))
        self._deriver.forget(closed_before(conn, self._run, first, self._deriver.episodes))
        changed = supersede_alerts(conn, self._run, attempt, first, self._deriver.followed)
        cursor.attempt, cursor.derived_step = attempt, max(first - 1, 0)
        return changed

    def _announcements(self, changed: list[dict[str, Any]]) -> list[Announcement]:
        cursor = self._cursor
        last = max(
            (int(taken.batch.steps[-1]) for taken in self._taken if len(taken.batch.steps)), default=cursor.derived_step
        )
        where = {"run": self._run, "batch": cursor.batch, "step": last, "derived_step": cursor.derived_step}
        return [{"type": "run", **where}, *({"type": "alert", **where, "alert": alert} for alert in changed)]


def optimizer_family(environment: dict[str, Any]) -> str:
    """Return "sgd" where the attempt's environment names SGD as its `optimizer`, else "adam", the cautious one.

    The environment is what the training job says of itself: a name, or a list of names, of which the first counts.
    """
    given = environment.get("optimizer")
    name = given[0] if isinstance(given, list) and given else given
    return "sgd" if isinstance(name, str) and name.upper().startswith("SGD") else "adam"


def optimizer_betas(environment: dict[str, Any]) -> tuple[float, float] | None:
    """Return β₁ and β₂ where the attempt's environment lists one pair of them as its `betas`, each between 0 and 1.

    None where it lists none or several, whose layers nothing tells apart.
    """
    given = environment.get("betas")
    if not isinstance(given, list) or len(given) != 1 or not isinstance(given[0], list) or len(given[0]) != 2:
        return None
    first, second = given[0]
    between = all(isinstance(beta, (int, float)) and 0 < beta < 1 for beta in (first, second))
    return (float(first), float(second)) if between else None
