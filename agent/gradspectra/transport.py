"""The background thread that spools, sends and retries what the training job records; training never waits for it."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from gradspectra.errors import ServerAway, ending, exit_state, uncaught
from gradspectra.http_client import HttpClient
from gradspectra.packing import MAX_STEPS, Packer
from gradspectra.record import StepRecord
from gradspectra.record_queue import RecordQueue, Unmade
from gradspectra.run_request import RunRequest
from gradspectra.sender import Sender
from gradspectra.session_folder import REFUSED, make_folder
from gradspectra.settings import access_token, server_address, spool_folder
from gradspectra.spool import DEFAULT_LIMIT, Spool
from gradspectra.thread_clock import ThreadClock
from gradspectra.unmeasured import Unmeasured, what_is_left

logger = logging.getLogger("gradspectra")

AlertCallback = Callable[[list[dict[str, Any]]], None]

PACE, PACE_AWAY = 0.1, 1.0
"""Seconds between two rounds of the thread while the server answers, and while it does not."""
HEARTBEAT = 10.0
REST_PER_CPU, LONGEST_REST = 300.0, 0.7
"""After each round the thread rests so many times the CPU time it cost (0.3% of a core), but at most 0.7 s."""
UNVIEWED_REST = 2.0
"""How long it rests while the server says that nobody has a page open."""
CATCHING_UP_PER_CPU = 19.0
"""The same between batches while a backlog is sent (5% of a core)."""


class Transport:
    """Sends the records of one agent process (one session) to the server, by way of a spool on disk.

    Arguments as in `watch`; environment: plain facts about machine and software; on_alerts is called in the thread
    with the alerts (JSON objects) that an answer of the server brings. spool_limit: bytes on disk that may wait.
    Bad arguments raise ValueError or TypeError here; after construction nothing raises.

    run_id, url, attempt: None until the server has made the run. local_key names the session until then.
    stop_at_step: the step at which the server wants the run to stop, None if it does not.
    """

    def __init__(
        self,
        server: str | None = None,
        token: str | None = None,
        project: str = "default",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        notes: str = "",
        total_steps: int | None = None,
        resume: str | None = None,
        start_step: int = 0,
        spool: str | os.PathLike[str] | None = None,
        environment: Mapping[str, Any] | None = None,
        on_alerts: AlertCallback | None = None,
        rank: int = 0,
        spool_limit: int = DEFAULT_LIMIT,
    ) -> None:
        self._http = HttpClient(server_address(server), access_token(token))
        self._request = RunRequest.of(
            project, name, config, tags, notes, total_steps, resume, start_step, environment, rank
        )
        self._spool_place = spool_folder(spool)
        self._spool_limit = spool_limit
        self._on_alerts = on_alerts
        self._packer = Packer(start_step)
        self._queue = RecordQueue()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid, self._forked = os.getpid(), False
        self._deadline = float("inf")
        self._uncaught_before = id(uncaught())
        self._end_state = "finished"
        self._overhead: float | None = None
        self.unmeasured: Callable[[], Unmeasured | None] = lambda: None
        """Asked at each heartbeat, which carries the answer where it is new."""
        self._last_step = start_step
        self._finished = False
        self._sender: Sender | None = None
        self._next_heartbeat = self._next_spooling = 0.0
        self.spool_directory: str | None = None
        self.run_id: str | None = None
        self.url: str | None = None
        self.attempt: int | None = None
        self.stop_at_step: int | None = None
        self._clock = ThreadClock()
        self._viewed = True
        self._failed_rounds = 0

    @property
    def seconds_spent(self) -> float:
        """Seconds of a processor that the thread has taken so far."""
        return self._clock.seconds

    @property
    def local_key(self) -> str:
        """Name of the session given by this process; names the run until the server has done so."""
        return self._request.session_key

    def start(self) -> None:
        """Start the thread. Never raises; the run is made in the thread, and retried while the server is away."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="gradspectra-sender", daemon=True)
        self._thread.start()
        atexit.register(self._at_exit)

    def record(self, record: StepRecord | Unmade) -> None:
        """Take over the numbers of a step. Costs a few microseconds, never blocks, never raises."""
        if self._closing.is_set():
            return
        if os.getpid() != self._pid:
            if not self._forked:
                logger.warning("gradspectra: not recorded: this process was forked from the one that sends; watch here")
            self._forked = True
            return
        self._last_step = record.step
        self._queue.put(record)

    def set_overhead(self, overhead: float) -> None:
        """Tell the share of step time the agent has spent so far; the next heartbeat carries it."""
        self._overhead = overhead

    def status(self) -> dict[str, Any]:
        """Return what the sending side is doing, in plain words and numbers."""
        sender = self._sender
        spool = sender.spool if sender is not None else None
        return {
            "server": self._http.server,
            "run": self.run_id,
            "url": self.url,
            "attempt": self.attempt,
            "spool": self.spool_directory,
            "waiting_steps": len(self._queue) + (spool.waiting_steps if spool else 0),
            "waiting_bytes": spool.waiting_bytes if spool else 0,
            "sent_batches": sender.sent if sender else 0,
            "refused_batches": sender.refused if sender else 0,
            "dropped_steps": self._queue.dropped,
            "last_error": sender.last_error if sender else None,
            "spool_failure": spool.journal.failure if spool else None,
            "failed_records": self._packer.failed,
            "failed_rounds": self._failed_rounds,
            "seconds_spent": self.seconds_spent,
        }

    def close(self, timeout: float = 5.0, state: str = "finished") -> None:
        """Send what is left within timeout seconds, then tell the server that the run is finished (or failed).

        What could not be sent stays spooled, and a warning names the command that sends it later.
        """
        if self._closing.is_set() or os.getpid() != self._pid:
            return
        timeout, self._end_state = ending(timeout, state)
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._queue.wake.set()
        if self._thread is None:
            return
        atexit.unregister(self._at_exit)
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._http.abort()
            self._thread.join(0.5)
        status = self.status()
        if status["waiting_steps"] or not self._finished:
            logger.warning("gradspectra: %s", what_is_left(status))

    def _at_exit(self) -> None:
        self.close(state=exit_state(self._uncaught_before))

    # What follows runs in the thread.

    def _run(self) -> None:
        self._clock.begin()
        try:
            self._work()
        finally:
            self._clock.end()

    def _work(self) -> None:
        try:
            self._sender = self._open()
        except Exception:
            logger.exception("gradspectra: recording stopped")
            self._closing.set()
            return
        while not self._closing.is_set():
            before = self._clock.note()
            try:
                self._round(self._sender)
            except Exception as error:
                self._round_failed(error)
            self._closing.wait(self._rest(self._sender, self._clock.note() - before))
        try:
            self._end(self._sender)
        except Exception:
            logger.exception("gradspectra: closing failed")

    def _round_failed(self, error: Exception) -> None:
        """Say it once; what is spooled stays there, and the next round goes on."""
        if not self._failed_rounds:
            logger.warning("gradspectra: sending failed (%r); it is tried again", error, exc_info=error)
        self._failed_rounds += 1

    def _rest(self, sender: Sender, spent: float) -> float:
        """Seconds to rest after a round that took `spent` seconds of the processor."""
        if sender.last_error is not None:
            return PACE_AWAY
        return max(PACE, min(LONGEST_REST, spent * REST_PER_CPU)) if self._viewed else UNVIEWED_REST

    def _open(self) -> Sender:
        folder, why = make_folder(self._spool_place, self._request, self._http.server)
        self._folder = folder
        if folder is None:
            kept = f"the newest records are kept in memory; {why}"
        else:
            self.spool_directory = str(folder.path)
            kept = f"the records are kept in {folder.path} and sent when it answers"
            if why:
                logger.warning("gradspectra: %s; using %s", why, folder.path)
        spool = Spool(folder.path if folder else None, self._spool_limit)
        return Sender(
            self._http, spool, self._request, self._answered, folder.path / REFUSED if folder else None, kept=kept
        )

    def _round(self, sender: Sender) -> None:
        """Wait until something is due, then spool and send it."""
        due = [self._next_heartbeat if sender.run is not None else float("inf")]
        if sender.run is None or sender.spool.waiting_bytes:
            due.append(sender.next_try)
        self._queue.wake.wait(max(0.0, min(min(due) - time.monotonic(), HEARTBEAT)))
        self._queue.wake.clear()
        self._spool(sender)
        before = self._clock.note()
        while sender.advance(lambda: self._while_waiting(sender)) and not self._closing.is_set():
            spent = self._clock.note() - before
            before += spent
            self._learn(sender)
            if sender.spool.waiting_bytes:
                self._closing.wait(spent * CATCHING_UP_PER_CPU)
            self._spool_when_due(sender)
        if sender.run is not None and time.monotonic() >= self._next_heartbeat:
            self._next_heartbeat = time.monotonic() + HEARTBEAT
            idle = partial(self._while_waiting, sender)
            sender.heartbeat(self._overhead, self._last_step, self.unmeasured(), idle)

    def _spool(self, sender: Sender) -> None:
        """Move what is queued to the spool."""
        for batch in self._packer.pack(*self._queue.take()):
            sender.spool.append(batch)
        self._next_spooling = time.monotonic() + min(PACE_AWAY, PACE * max(1, sender.spool.waiting_batches))

    def _spool_when_due(self, sender: Sender) -> None:
        """The more batches wait, the larger the next: else a slow way would have more to carry than it can."""
        if time.monotonic() >= self._next_spooling or len(self._queue) >= MAX_STEPS:
            self._spool(sender)

    def _while_waiting(self, sender: Sender) -> None:
        """The server takes its time: go on spooling, and break off when closing is over."""
        self._spool_when_due(sender)
        if time.monotonic() >= self._deadline:
            raise ServerAway(f"no answer from {self._http.server} before the run closed")

    def _learn(self, sender: Sender) -> None:
        if self.run_id is None and sender.run is not None:
            self.attempt = sender.run["attempt"]
            self.url = sender.run.get("url") or f"{self._http.server}/runs/{sender.run['id']}"
            self._next_heartbeat = time.monotonic() + HEARTBEAT
            self.run_id = sender.run["id"]
            logger.info("gradspectra: %s", self.url)

    def _answered(self, members: dict[str, Any]) -> None:
        stop = members.get("stop_at_step")
        self.stop_at_step = stop if isinstance(stop, int) else None
        self._viewed = members.get("viewed") is not False
        alerts = members.get("alerts")
        if alerts and self._on_alerts is not None:
            try:
                self._on_alerts(list(alerts))
            except Exception:
                logger.exception("gradspectra: on_alerts failed")

    def _end(self, sender: Sender) -> None:
        """Send the rest until the deadline, say that the run is over, and leave the spool as it then is."""
        self._spool(sender)
        said = self._overhead, self._last_step, self.unmeasured()
        tell = partial(sender.heartbeat, *said)  # of a run shorter than HEARTBEAT too
        done = sender.end(self._end_state, self._deadline, tell, lambda: self._while_waiting(sender))
        self._learn(sender)
        sender.spool.close()
        self._http.close()
        if self._folder is not None:
            if not done:
                self._folder.set_closed(self._end_state)
                self._folder.release()
            else:
                self._folder.remove()
        self._finished = done
