"""Brings the spool of one session to the server: makes the run, sends in order, waits and goes back as it is told."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradspectra_core.records import Batch
from gradspectra_core.wire import CONTENT_TYPE, WireError, decode_batch, encode_batch

from gradspectra.errors import ServerAway, ServerRefused
from gradspectra.frames import Frame
from gradspectra.http_client import Answer, HttpClient
from gradspectra.run_request import RunRequest
from gradspectra.shedding import beyond_reading, without_steps
from gradspectra.spool import Spool
from gradspectra.unmeasured import Unmeasured

logger = logging.getLogger("gradspectra")

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0
REFUSED_WAIT = 60.0
"""Seconds to wait where waiting alone will hardly help: a wrong token, a run that is gone."""
BUSY_BEFORE_WARNING = 3
KEEP_REFUSED = 20
_BATCH_AT_FAULT = (400, 413, 415, 422)

OnAnswer = Callable[[dict[str, Any]], None]
Idle = Callable[[], None]


class _Later(Exception):
    """The server asks to come again. seconds: after how long, None where it does not say."""

    def __init__(self, reason: str, seconds: float | None) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Sender:
    """One session on its way to the server. `advance` does the next thing that is due; `end` alone sleeps.

    on_answer gets each answer to records and heartbeats. refused_folder: where batches that the server refuses are
    kept with the reason, None to forget them. kept: what becomes of the records meanwhile, for the one warning that
    is given. anew: write the session into batches that carry one already. turned_away: whether the server has last
    refused all of it, as with a wrong token.
    """

    def __init__(
        self,
        http: HttpClient,
        spool: Spool,
        request: RunRequest,
        on_answer: OnAnswer,
        refused_folder: Path | None = None,
        kept: str = "the records are kept",
        anew: bool = False,
    ) -> None:
        self.http = http
        self.spool = spool
        self.run: dict[str, Any] | None = None
        self.next_try = 0.0
        self.last_error: str | None = None
        self._said: Unmeasured | None = None
        self.refused = 0
        self.turned_away = False
        self.sent = 0
        self._request = request
        self._on_answer = on_answer
        self._refused_folder = refused_folder
        self._kept = kept
        self._anew = anew
        self._random = random.Random()
        self._warned: set[str] = set()
        self._failures = 0
        self._busy = False
        """Whether the wait until next_try is one that a busy server has asked for."""
        self._gaps_back = 0
        self._replacement: tuple[int, bytes, bool] | None = None

    def advance(self, while_waiting: Idle | None = None) -> bool:
        """Make the run or send one batch, if one waits and it is time; True if something was achieved."""
        if time.monotonic() < self.next_try:
            return False
        try:
            if self.run is None:
                self._make_run(while_waiting)
            else:
                found = self.spool.peek(self._anew)
                if found is None:
                    return False
                self._send(self.run["id"], *found, while_waiting)
        except ServerAway as error:
            self._wait("away", str(error), None)
        except _Later as error:
            self._wait("busy", str(error), error.seconds)
        except ServerRefused as error:
            self._wait("refused", str(error), REFUSED_WAIT)
        else:
            self._reached()
            return True
        return False

    def heartbeat(
        self, overhead: float | None, step: int, said: Unmeasured | None = None, while_waiting: Idle | None = None
    ) -> None:
        """Say that the session lives, and what is not measured where that is new; a failure is only remembered.

        overhead: None where nobody measures it.
        """
        if self.run is None or time.monotonic() < self.next_try:
            return
        members: dict[str, Any] = {"session": self.run["session"], "step": step}
        if overhead is not None:
            members["overhead"] = overhead
        if said is not None and said != self._said:
            members |= said.members()
        try:
            path = f"/runs/{self.run['id']}/heartbeat"
            self._on_answer(self.http.call("POST", path, members, while_waiting) or {})
            self._said = said or self._said
        except (ServerAway, ServerRefused) as error:
            self.last_error = str(error)

    def finish(self, state: str) -> bool:
        """Tell the server how the run ended; False if it could not be told, or something else than it answered."""
        if self.run is None:
            return False
        body = json.dumps({"session": self.run["session"], "state": state}).encode()
        try:
            answer = self.http.request("POST", f"/runs/{self.run['id']}/finish", body)
            if not 200 <= answer.status < 300:
                raise _trouble(answer)
            answer.json()
        except _Later as error:
            self._wait("busy", str(error), error.seconds)
        except (ServerAway, ServerRefused) as error:
            self.last_error, self._busy = str(error), False
        else:
            return True
        return False

    def end(self, state: str, deadline: float, tell: Callable[[], None], while_waiting: Idle) -> bool:
        """Send all that waits, `tell`, and say how the run ended; False if that was not done by the deadline.

        deadline: of time.monotonic. A busy server is waited for until then; one that is away or refuses is not.
        """
        if not self._busy or self.next_try >= deadline:
            self.retry_now()
        while True:
            left = deadline - time.monotonic()
            self.http.set_timeout(max(0.1, min(10.0, left)))
            if left > 0 and self.advance(while_waiting):
                continue
            if not self.spool.waiting_bytes and time.monotonic() >= self.next_try:
                tell()
                if self.finish(state):
                    return True
            if not self._busy or self.next_try >= deadline or time.monotonic() >= deadline:
                return False
            time.sleep(max(0.0, self.next_try - time.monotonic()))

    def retry_now(self) -> None:
        """Forget a wait that is going on."""
        self.next_try = 0.0

    def _make_run(self, while_waiting: Idle | None) -> None:
        body = json.dumps(self._request.to_json()).encode()
        answer = self.http.request("POST", "/runs", body, while_waiting=while_waiting)
        if answer.status not in (200, 201):
            raise _trouble(answer)
        run = answer.json()
        try:
            known: dict[str, Any] = {
                "id": str(run["id"]),
                "session": str(run["session"]),
                "attempt": int(run["attempt"]),
            }
            expected = int(run["next_sequence"])
        except (KeyError, TypeError, ValueError):
            raise ServerAway(f"{self.http.server} did not answer like a gradspectra server") from None
        self.run = {**run, **known}
        self.spool.set_session(known["session"])
        if expected > 1:
            self.spool.acknowledge(expected - 1)

    def _send(self, run: str, frame: Frame, payload: bytes, while_waiting: Idle | None) -> None:
        if self._replacement is not None and self._replacement[0] == frame.sequence:
            payload = self._replacement[1]
        answer = self.http.request("POST", f"/runs/{run}/records", payload, CONTENT_TYPE, while_waiting)
        if answer.status == 200:
            self._stored(frame, answer)
        elif answer.status == 409:
            self._go_back(answer)
        elif answer.status in _BATCH_AT_FAULT:
            self._set_aside(frame, payload, answer.problem())
        else:
            raise _trouble(answer)

    def _stored(self, frame: Frame, answer: Answer) -> None:
        members = answer.json()
        self.spool.acknowledge(frame.sequence)
        self.sent += 1
        self._gaps_back = 0
        self._on_answer(members)

    def _go_back(self, answer: Answer) -> None:
        """The server expects another number: go there in the spool. Raises ServerRefused if that does not help."""
        problem = answer.problem()
        expected, last_step = problem.members.get("expected"), problem.members.get("last_step")
        self._gaps_back += 1
        if not isinstance(expected, int) or not isinstance(last_step, int) or self._gaps_back > 3:
            raise problem
        self.spool.go_to(max(expected, 1), last_step)

    def _set_aside(self, frame: Frame, payload: bytes, problem: ServerRefused) -> None:
        """Keep a batch that the server refuses, and send a gap with its number instead, with its layer table."""
        if self._replacement is None or self._replacement[0] != frame.sequence:
            self.refused += 1
            logger.warning("gradspectra: steps %d to %d were refused: %s", frame.first_step, frame.last_step, problem)
            self._keep_refused(frame, payload, problem)
            gap = self._gap(frame, payload, f"refused by the server: {problem.detail or problem.title}")
        elif self._replacement[2]:
            gap = replace(decode_batch(payload), layer_table=None)
        else:
            raise problem
        self._replacement = (frame.sequence, encode_batch(gap), gap.layer_table is not None)

    def _gap(self, frame: Frame, payload: bytes, reason: str) -> Batch:
        """What is sent in the place of a refused batch: its layer table, and a gap over its steps."""
        try:
            return without_steps(decode_batch(payload), reason)
        except WireError:
            assert self.run is not None
            return beyond_reading(frame, self.run["session"], reason)

    def _keep_refused(self, frame: Frame, payload: bytes, problem: ServerRefused) -> None:
        folder = self._refused_folder
        if folder is None or self.refused > KEEP_REFUSED:
            return
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            (folder / f"{frame.sequence}.batch").write_bytes(payload)
            (folder / f"{frame.sequence}.json").write_text(json.dumps(problem.members, indent=2))

    def _reached(self) -> None:
        if self._failures:
            logger.info("gradspectra: %s answers again", self.http.server)
        self._failures = 0
        self._busy = False
        self.last_error = None
        self.turned_away = False

    def _wait(self, kind: str, reason: str, seconds: float | None) -> None:
        """Try again after `seconds`, or after a wait that doubles with each failure, at random up to a half shorter."""
        self.last_error = reason
        self._busy = kind == "busy"
        if seconds is None:
            longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(self._failures, 10))
            seconds = longest * self._random.uniform(0.5, 1.0)
        self._failures += 1
        self.turned_away = kind == "refused"
        self.next_try = time.monotonic() + seconds
        if kind not in self._warned and (kind != "busy" or self._failures >= BUSY_BEFORE_WARNING):
            self._warned.add(kind)
            logger.warning("gradspectra: %s; %s", reason, self._kept)


def _trouble(answer: Answer) -> Exception:
    """Return the error of an answer that is neither good nor the fault of a batch."""
    problem = answer.problem()
    if answer.status in (408, 425, 429) or answer.status >= 500:
        return _Later(str(problem), answer.retry_after)
    return problem
