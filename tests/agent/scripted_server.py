"""A small real HTTP server that behaves like the service towards an agent, and misbehaves as a test tells it to."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from gradspectra_core.records import Batch
from gradspectra_core.wire import CONTENT_TYPE, WireError, decode_batch

Script = Callable[["Handler"], bool]
"""Called before a request is answered; True if it has answered (or broken) the request itself."""


class ScriptedServer:
    """Keeps runs by session key and batches by session. `scripts` decide over the POSTs of records, one over each.

    on_finish: the same over the POSTs that say how a run ended.

    away: refuse connections, on a port that nobody else can take, until `listen` is called.
    """

    def __init__(self, away: bool = False) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.batches: list[Batch] = []
        self.repeated = 0
        self.heartbeats: list[dict[str, Any]] = []
        self.finished: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, float]] = []
        self.scripts: list[Script] = []
        self.on_make_run: Script | None = None
        self.on_finish: list[Script] = []
        self.alerts: list[dict[str, Any]] = []
        self.stop_at_step: int | None = None
        self.viewed = True
        self.expected_token: str | None = None
        self._http = _Server(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._http.server_bind()
        self._http.owner = self
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        if not away:
            self.listen()

    def listen(self) -> None:
        """Take connections from now on."""
        self._http.server_activate()
        self._thread.start()

    def steps(self) -> list[int]:
        """All steps received, in the order of the batches."""
        return [int(step) for batch in self.batches for step in batch.steps]

    def gaps(self) -> list[tuple[int, int, str]]:
        """All gaps received."""
        return [(gap.first, gap.last, gap.what) for batch in self.batches for gap in batch.gaps]

    def wait_for(self, condition: Callable[[], bool], seconds: float = 180.0) -> None:
        """Wait until the condition holds; fails the test if it does not in time."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not in {seconds} s; {len(self.batches)} batches, {self.requests[-5:]}"
            time.sleep(0.01)

    def stop(self) -> None:
        """Close the listening socket and all connections."""
        self._http.shutdown()
        self._http.server_close()
        for connection in list(self._http.connections):
            connection.close()
        self._thread.join(5)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    owner: ScriptedServer

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.connections: set[socket.socket] = set()

    def handle_error(self, *_: Any) -> None:
        """A connection that breaks is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    body: bytes

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def answer(self, status: int, members: Any, **headers: str) -> bool:
        content = json.dumps(members).encode()
        self.send_response(status)
        kind = "application/json" if status < 400 else "application/problem+json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        return True

    def drop(self) -> bool:
        """Break off without an answer."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
        return True

    def do_POST(self) -> None:
        owner = self.server.owner
        owner.requests.append(("POST", self.path, time.monotonic()))
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        if owner.expected_token and self.headers["Authorization"] != f"Bearer {owner.expected_token}":
            self.answer(401, {"type": "/problems/unauthorized", "title": "Unauthorized", "detail": "a token is needed"})
        elif self.path == "/api/v1/runs":
            if owner.on_make_run is None or not owner.on_make_run(self):
                self.make_run()
        elif self.path.endswith("/records"):
            if not (owner.scripts and owner.scripts.pop(0)(self)):
                self.records()
        elif self.path.endswith("/heartbeat"):
            owner.heartbeats.append(json.loads(self.body))
            self.answer(200, {"alerts": [], "stop_at_step": owner.stop_at_step})
        elif self.path.endswith("/finish") and not (owner.on_finish and owner.on_finish.pop(0)(self)):
            owner.finished.append(json.loads(self.body))
            self.answer(200, {})

    def make_run(self) -> None:
        owner = self.server.owner
        request = json.loads(self.body)
        key = request["session_key"]
        if key not in owner.runs:
            number = len(owner.runs) + 1
            owner.runs[key] = {"id": f"run{number}", "session": f"session{number}", "attempt": 1, "request": request}
        run = owner.runs[key]
        stored = [batch.sequence for batch in owner.batches if batch.session == run["session"]]
        url = f"{owner.url}/runs/{run['id']}"
        self.answer(201, {**run, "next_sequence": max(stored, default=0) + 1, "url": url})

    def records(self) -> None:
        """Store a batch as the service does: in order, once."""
        owner = self.server.owner
        assert self.headers["Content-Type"] == CONTENT_TYPE
        try:
            batch = decode_batch(self.body)
        except WireError as error:
            self.answer(422, {"type": "/problems/bad-batch", "detail": str(error), "field": error.field})
            return
        expected = max((b.sequence for b in owner.batches if b.session == batch.session), default=0) + 1
        if batch.sequence > expected:
            steps = [int(step) for b in owner.batches if b.session == batch.session for step in b.steps]
            members = {"detail": "a gap", "expected": expected, "last_step": max(steps, default=0)}
            self.answer(409, {"type": "/problems/sequence-gap", **members})
            return
        if batch.sequence == expected:
            owner.batches.append(batch)
            status = "stored"
        else:
            owner.repeated += 1
            status = "repeated"
        alerts, owner.alerts = owner.alerts, []
        self.answer(
            200,
            {
                "status": status,
                "next_sequence": expected,
                "alerts": alerts,
                "stop_at_step": owner.stop_at_step,
                "viewed": owner.viewed,
            },
        )

    def log_message(self, *_: Any) -> None:
        """Quiet."""
