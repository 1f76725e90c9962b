"""Who is told that a run has new batches: the protocol, and the embedded dispatcher that works in threads."""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from gradspectra_store import Store
from gradspectra_store.compaction import compactable_runs
from gradspectra_store.derived import behind

from gradspectra_worker.announce import Announce, Announcement
from gradspectra_worker.compact import compact
from gradspectra_worker.deliver import deliver_due
from gradspectra_worker.derive import derive
from gradspectra_worker.failures import tell_failure
from gradspectra_worker.retain import RETAIN_SECONDS, RETAIN_TURNS, retain_due
from gradspectra_worker.sweep import sweep

REST_SECONDS = 0.05
"""A run just derived waits this long before its next turn: what arrives meanwhile is derived together, at a fraction
of the cost, and ingest has the database and the processor to itself."""

DERIVE_SHARE = 0.25
"""Share of its time that the deriving thread works on runs of which batches come even while it does, all of them
together: a flood is taken in first, and derived at full speed when it is over."""

FAILED_REST_SECONDS = 10.0
"""A run that could not be derived waits this long: its next batch would fail the same way."""

FLOOD_BATCHES, FLOOD_REST_SECONDS = 32, 0.25
"""Where a turn had so many batches and more came during it, the next one waits at least this long: most of what a turn
costs it costs once, however many batches it takes."""

FLOOD_SECONDS, FLOOD_WAIT_SECONDS = 1.0, 10.0
"""So long after such a turn the flood goes on, as far as one can tell; compaction lets it pass, but waits no longer."""

COMPACT_SHARE = 0.2
"""Share of its time that the compacting thread works: what it leaves undone waits until fewer batches come."""

CHECKPOINT_SECONDS, CHECKPOINT_COMMITS = 0.25, 64
"""How often SQLite's log is moved into the file while so many transactions come in that time, and how many."""

_log = logging.getLogger(__name__)


class Dispatcher(Protocol):
    """Takes requests to derive a run up to its last batch. Idempotent; a request may be lost without harm."""

    def request(self, run: str) -> None:
        """Ask for a run to be derived; returns at once and never raises."""

    def start(self) -> None:
        """Begin to work, with what earlier processes left undone."""

    def stop(self, timeout: float = 10.0) -> None:
        """Stop after the work in hand."""


class InlineDispatcher:
    """Derives in one thread of this process, compacts and retires in another, delivers alerts in a third and moves
    SQLite's log into the file in a fourth; no Redis.

    Requests are coalesced (a run waits at most once) and served in order of arrival. Every `sweep_seconds` runs
    whose request was lost are found by their watermark, and what was derived is compacted; every `retain_seconds`
    runs that are due are retired. announce: told after each derived chunk, from the thread.
    """

    def __init__(
        self,
        store: Store,
        announce: Announce | None = None,
        sweep_seconds: float = 5.0,
        allow_hosts: tuple[str, ...] = (),
        retain_seconds: float = RETAIN_SECONDS,
    ) -> None:
        for name, seconds in (("sweep_seconds", sweep_seconds), ("retain_seconds", retain_seconds)):
            if seconds <= 0:
                raise ValueError(f"{name} must be above 0, got {seconds}")
        self._store = store
        self._announce = announce
        self._sweep_seconds = sweep_seconds
        self._retain_seconds = retain_seconds
        self._allow_hosts = allow_hosts
        self._waiting: dict[str, None] = {}
        self._resting: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._flood_until = 0.0
        self._wake = threading.Condition()
        self._stopping = threading.Event()
        self._alerts = threading.Event()
        self._deriving = threading.Thread(target=self._derive_loop, name="gradspectra-derive", daemon=True)
        self._compacting = threading.Thread(target=self._compact_loop, name="gradspectra-compact", daemon=True)
        self._delivering = threading.Thread(target=self._deliver_loop, name="gradspectra-deliver", daemon=True)
        self._checkpointing = threading.Thread(target=self._checkpoint_loop, name="gradspectra-log", daemon=True)
        self._threads = self._deriving, self._compacting, self._delivering, self._checkpointing

    def request(self, run: str) -> None:
        """Ask for a run to be derived; returns at once."""
        self._asked[run] = time.monotonic()
        if run not in self._waiting:  # else the thread knows: to be woken for each batch of a flood would slow it down
            self._wait_for_turn(run)

    def _wait_for_turn(self, run: str) -> None:
        with self._wake:
            self._waiting[run] = None
            self._wake.notify()

    def start(self) -> None:
        """Start the threads; the first sweep takes up what an earlier process left undone."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Stop after the chunk in hand. timeout: seconds to wait for it; what is left is derived at the next start."""
        self._stopping.set()
        self._alerts.set()
        with self._wake:
            self._wake.notify_all()
        until = time.monotonic() + timeout
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))

    def _derive_loop(self) -> None:
        next_sweep = time.monotonic()
        while not self._stopping.is_set():
            try:
                if time.monotonic() >= next_sweep:
                    next_sweep = time.monotonic() + self._sweep_seconds
                    sweep(self._store, self, time.time(), self._tell)
                    self._alerts.set()
                run = self._next(next_sweep - time.monotonic())
                if run is not None:
                    self._take_turn(run)
            except Exception as error:
                tell_failure(_log, "finding what to derive failed; it is tried again", error)

    def _next(self, seconds: float) -> str | None:
        """Wait up to `seconds` for a run whose turn it is, in order of arrival among those that have rested."""
        until = time.monotonic() + seconds
        with self._wake:
            while not self._stopping.is_set():
                now = time.monotonic()
                ready = next((run for run in self._waiting if self._resting.get(run, 0.0) <= now), None)
                if ready is not None:
                    del self._waiting[ready]
                    return ready
                if now >= until:
                    return None
                self._wake.wait(min([until, *(self._resting[run] for run in self._waiting)]) - now)
        return None

    def _take_turn(self, run: str) -> None:
        """Derive one chunk of a run, and ask again for what came meanwhile: runs that never pause share the thread."""
        begin = time.monotonic()
        try:
            done = derive(self._store, run, announce=self._tell, turns=1)
        except Exception as error:
            tell_failure(_log, f"deriving run {run} failed; it is tried again", error)
            self._resting[run] = time.monotonic() + FAILED_REST_SECONDS
            return
        now = time.monotonic()
        with self._store.read() as conn:
            more = behind(conn, run)
        coming = sum(at > begin for at in list(self._asked.values()))
        asked = self._asked.pop(run, begin) > begin
        rest = self._rest(done, more, (now - begin) * max(coming, 1), asked)
        if asked and done >= FLOOD_BATCHES:
            self._flood_until = now + FLOOD_SECONDS
        with self._wake:
            self._resting = {other: end for other, end in self._resting.items() if end > now}
            self._resting[run] = now + rest
        if more:
            self._wait_for_turn(run)

    @staticmethod
    def _rest(done: int, more: bool, worked: float, asked: bool) -> float:
        """Seconds until a run's next turn, after one of `done` batches that took `worked` seconds, times the number of
        runs of which batches came meanwhile: they share the deriving thread's share of the time.

        more: whether batches are left; asked: whether any came during the turn. Those of a turn that reached its
        bounds, with none come since, are what a burst left: they do not wait.
        """
        if not asked:
            return 0.0 if more else REST_SECONDS
        least = FLOOD_REST_SECONDS if done >= FLOOD_BATCHES else REST_SECONDS
        return max(least, worked * (1 / DERIVE_SHARE - 1))

    def _tell(self, announcement: Announcement) -> None:
        if announcement["type"] == "alert":
            self._alerts.set()
        if self._announce is not None:
            self._announce(announcement)

    def _compact_loop(self) -> None:
        next_retaining = time.monotonic()
        while not self._stopping.wait(self._sweep_seconds):
            try:
                with self._store.read() as conn:
                    due = compactable_runs(conn)
                if due:
                    self._let_flood_pass()
                while due:
                    due = [run for run in due if self._compact_a_round(run)]
                if time.monotonic() >= next_retaining:
                    done = retain_due(self._store, time.time(), self._rested, turns=RETAIN_TURNS)
                    next_retaining = time.monotonic() + (self._retain_seconds if done < RETAIN_TURNS else 0.0)
            except Exception as error:
                tell_failure(_log, "finding what to compact or to retire failed; it is tried again", error)

    def _let_flood_pass(self) -> None:
        """Wait while batches come in a flood: a round has the interpreter and the database to itself for too long."""
        latest = time.monotonic() + FLOOD_WAIT_SECONDS
        while (seconds := min(self._flood_until, latest) - time.monotonic()) > 0 and not self._stopping.is_set():
            self._stopping.wait(seconds)

    def _compact_a_round(self, run: str) -> bool:
        """Compact one round of a run and rest; False where there is nothing left, or the dispatcher stops."""
        begin = time.monotonic()
        try:
            done = compact(self._store, run, turns=1)
        except Exception as error:
            tell_failure(_log, f"compacting run {run} failed; it is tried again", error)
            return False
        return self._rested(time.monotonic() - begin) and done > 0

    def _rested(self, worked: float) -> bool:
        """Rest after so many seconds of work; False where the dispatcher stops."""
        return not self._stopping.wait(worked * (1 / COMPACT_SHARE - 1))

    def _deliver_loop(self) -> None:
        while True:
            self._alerts.wait()
            self._alerts.clear()
            if self._stopping.is_set():
                return
            try:
                deliver_due(self._store, allow_hosts=self._allow_hosts)
            except Exception as error:
                tell_failure(_log, "delivering alerts failed; the sweep tries again", error)

    def _checkpoint_loop(self) -> None:
        while not self._stopping.wait(CHECKPOINT_SECONDS):
            try:
                self._store.checkpoint(CHECKPOINT_COMMITS)
            except Exception as error:
                tell_failure(_log, "moving the log into the file failed; it is tried again", error)
