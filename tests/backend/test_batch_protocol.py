"""A short batch that comes whole: stored and answered before the application, as the application would answer it."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from backend.callers import API, batch
from gradspectra_backend import lane as lanes
from gradspectra_backend.app import create_app
from gradspectra_backend.batch_protocol import LONGEST_HEAD, BatchProtocol
from gradspectra_backend.settings import load_settings
from gradspectra_core.wire import CONTENT_TYPE, encode_batch
from gradspectra_store.runs import RunRequest, start_run
from starlette.types import ASGIApp, Receive, Scope, Send

SENT = {
    "Accept-Encoding": "identity",
    "Content-Length": "",
    "User-Agent": "gradspectra/1",
    "Accept": "application/json",
    "Content-Type": CONTENT_TYPE,
}
"""What the agent sends."""


@dataclass
class Server:
    """A server in a thread. passed: paths of the calls that came to the application; gate: what /slow waits for."""

    app: Any
    port: int
    uvicorn: uvicorn.Server
    passed: list[str] = field(default_factory=list)
    closing: ExitStack = field(default_factory=ExitStack)
    gate: threading.Event = field(default_factory=threading.Event)

    def start_run(self) -> dict[str, Any]:
        """Start a run past HTTP; no call has come to the application since."""
        with self.app.state.context.store.write() as conn:
            started = start_run(conn, RunRequest("p", "r"))
        self.passed.clear()
        return {"id": started.run, "session": started.session}


@contextmanager
def running(data: Path, http: Any = BatchProtocol, at: str = "127.0.0.1", **settings: Any) -> Iterator[Server]:
    app = create_app(load_settings(data=data, **settings))
    listener = socket.create_server((at, 0))
    config = uvicorn.Config(app, http=http, log_level="critical", server_header=False, ws="none")
    server = Server(app, listener.getsockname()[1], uvicorn.Server(config))
    thread = threading.Thread(target=server.uvicorn.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.uvicorn.started)
    with httpx2.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        client.get(f"{API}/health")  # from then on the name of the host is known
    app.state.context.dispatcher.stop()  # it writes too, and then a batch would have to wait
    app.middleware_stack = _counted(app.middleware_stack, server)
    try:
        yield server
    finally:
        server.closing.close()
        server.uvicorn.should_exit = True
        thread.join(60)
        listener.close()


def _counted(inner: ASGIApp, server: Server) -> ASGIApp:
    async def counting(scope: Scope, receive: Receive, send: Send) -> None:
        server.passed.append(scope["path"])
        if scope["path"] == "/slow":
            await asyncio.to_thread(server.gate.wait, 60)
        await inner(scope, receive, send)

    return counting


class Wire:
    """One connection, byte by byte. It is closed with its server."""

    def __init__(self, server: Server, to: str = "127.0.0.1") -> None:
        self.port = server.port
        self.socket = socket.create_connection((to, server.port), 60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.read = self.socket.makefile("rb")
        server.closing.callback(self.socket.close)
        server.closing.callback(self.read.close)

    def call(self, run: str, body: bytes, line: str = "POST {} HTTP/1.1", **changed: str | None) -> bytes:
        """The bytes of a call. changed: other values of its fields, with _ for -; None leaves one out."""
        fields: dict[str, str | None] = {"Host": f"127.0.0.1:{self.port}", **SENT, "Content-Length": str(len(body))}
        fields |= {name.replace("_", "-"): value for name, value in changed.items()}
        lines = [line.format(f"{API}/runs/{run}/records")]
        lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
        return "\r\n".join([*lines, "", ""]).encode() + body

    def protocol(self, server: Server) -> Any:
        """The server's end, None where it has not accepted the connection yet."""
        own = self.socket.getsockname()
        return next((one for one in server.uvicorn.server_state.connections if one.client == own), None)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer: status, fields without the date, body."""
        status = int(self.read.readline().split()[1])
        fields = {}
        while (line := self.read.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            fields[name] = value
        body = self.read.read(int(fields["content-length"]))
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", fields.pop("date"))
        return status, fields, body

    def ask(self, *arguments: Any, **changed: Any) -> tuple[int, dict[str, str], bytes]:
        self.socket.sendall(self.call(*arguments, **changed))
        return self.answer()


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def first(run: dict[str, Any], number: int = 1) -> bytes:
    return encode_batch(batch(run["session"], number, [number]))


@pytest.fixture(autouse=True)
def none_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a call that took long on a busy machine would send those after it to the threads."""
    monkeypatch.setattr(lanes, "SLOW_SECONDS", 60.0)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """A server as it is started, and one with uvicorn's own protocol."""
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp(name) for name in ("own", "uvicorns")]
        ways = (BatchProtocol, "httptools")
        yield [stack.enter_context(running(at, way)) for at, way in zip(folders, ways, strict=True)]


def test_a_plain_batch_is_answered_as_by_the_application_and_does_not_come_to_it(both: list[Server]):
    answers, passed = [], []
    for server in both:
        run, wire = server.start_run(), Wire(server)
        answers.append([wire.ask(run["id"], first(run, number)) for number in (1, 2, 2)])
        passed.append(len(server.passed))
    assert answers[0] == answers[1]
    assert [status for status, _, _ in answers[0]] == [200, 200, 200]
    assert [b'"repeated"' in body for _, _, body in answers[0]] == [False, False, True]
    assert passed == [0, 3]


@pytest.mark.parametrize(
    "changed",
    [
        {"Host": "evil.example"},
        {"Host": None},
        {"Origin": "http://evil.example"},
        {"Cookie": "a=b"},
        {"Authorization": "Bearer gs_unknown"},
        {"Content_Encoding": "gzip"},
        {"Content_Type": "application/json"},
        {"Content_Type": None},
        {"Accept": "*/*"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Connection": "close"},
        {"Expect": "100-continue-not"},
        {"Content_Length": "3"},
        {"accept": "application/json"},
        {"line": "POST {}?at=%00 HTTP/1.1"},
        {"line": "PUT {} HTTP/1.1"},
        {"line": "POST {} HTTP/1.0"},
        {"User_Agent": "x" * LONGEST_HEAD},
        {"User_Agent": "tab\there"},
        {"body": b"noise"},
        {"body": b"x" * (2**16 + 1)},
        {"run": "nowhere"},
        {"steps": 3000},
        {"number": 4},
    ],
)
def test_all_else_is_left_to_the_application(both: list[Server], changed: dict[str, Any]):
    answers = []
    for server in both:
        run, wire = server.start_run(), Wire(server)
        fields = dict(changed)
        sent = batch(run["session"], fields.pop("number", 1), range(1, 1 + fields.pop("steps", 1)))
        body = fields.pop("body", encode_batch(sent))
        status, told, said = wire.ask(fields.pop("run", run["id"]), body, **fields)
        answers.append((status, told, said.replace(run["id"].encode(), b"it")))
        until(partial(bool, server.passed))  # bytes past the length are refused before the call itself has begun
        assert len(server.passed) == 1
    assert answers[0] == answers[1]


def test_what_comes_in_pieces_or_with_the_next_call_is_read_as_ever(both: list[Server]):
    server = both[0]
    run, wire = server.start_run(), Wire(server)
    calls = [wire.call(run["id"], first(run, number)) for number in range(1, 5)]
    wire.socket.sendall(calls[0] + calls[1])
    assert [wire.answer()[0] for _ in range(2)] == [200, 200]
    wire.socket.sendall(calls[2][:-10])
    until(lambda: len(server.passed) == 3)
    wire.socket.sendall(calls[2][-10:])
    assert wire.answer()[0] == 200
    wire.socket.sendall(calls[3])
    assert (wire.answer()[0], len(server.passed)) == (200, 3)


def test_a_body_that_looks_like_a_call_is_a_body(both: list[Server]):
    server = both[0]
    run, wire = server.start_run(), Wire(server)
    inner = wire.call(run["id"], first(run))
    outer = wire.call("nowhere", inner)[: -len(inner)]
    wire.socket.sendall(outer)
    until(lambda: server.passed)
    wire.socket.sendall(inner)
    status, _, body = wire.answer()
    assert status in (400, 422), body
    assert wire.ask(run["id"], first(run))[2].startswith(b'{"status":"stored"')


def test_a_field_that_goes_on_like_a_call_is_a_field(both: list[Server]):
    server = both[0]
    run, wire = server.start_run(), Wire(server)
    wire.socket.sendall(f"GET {API}/health HTTP/1.1\r\nCookie: a=".encode())
    until(lambda: getattr(wire.protocol(server), "url", b"") == f"{API}/health".encode())
    wire.socket.sendall(wire.call(run["id"], first(run)))
    assert wire.answer()[0] == 200
    assert server.passed == [f"{API}/health"]


def test_a_batch_is_answered_after_the_call_before_it(both: list[Server]):
    server = both[0]
    run, wire = server.start_run(), Wire(server)
    wire.socket.sendall(f"GET /slow HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
    until(lambda: server.passed)
    wire.socket.sendall(wire.call(run["id"], first(run)))
    until(lambda: wire.protocol(server).pipeline)
    server.gate.set()
    assert [wire.answer()[0] for _ in range(2)] == [404, 200]


def test_a_connection_stays_open_from_its_last_batch_on(both: list[Server]):
    server = both[0]
    run, wire = server.start_run(), Wire(server)
    timers = []
    for number in (1, 2):
        assert wire.ask(run["id"], first(run, number))[0] == 200
        timers.append(wire.protocol(server).timeout_keep_alive_task)
    assert timers[0].cancelled()
    assert not timers[1].cancelled()


def test_a_batch_that_is_refused_counts_once(tmp_path: Path):
    with running(tmp_path) as server:
        run, wire = server.start_run(), Wire(server)
        assert wire.ask(run["id"], first(run, 3))[0] == 409
        assert wire.ask(run["id"], first(run))[0] == 200
        batches = server.app.state.context.meters.batches
        assert [batches.labels(outcome)._value.get() for outcome in ("gap", "refused", "stored")] == [1, 0, 1]


def test_a_batch_that_would_have_to_wait_is_left_to_the_application(tmp_path: Path):
    with running(tmp_path) as server:
        run, wire = server.start_run(), Wire(server)
        with server.app.state.context.store.write():
            wire.socket.sendall(wire.call(run["id"], first(run)))
            until(lambda: server.passed)
        assert wire.answer()[0] == 200


@pytest.mark.parametrize("settings", [{"auth": "tokens"}, {"sqlite_synchronous": "FULL"}])
def test_where_a_token_is_asked_for_or_the_disk_is_waited_for_the_application_answers(
    tmp_path: Path, settings: dict[str, Any]
):
    with running(tmp_path, **settings) as server:
        run = server.start_run()
        assert Wire(server).ask(run["id"], first(run))[0] == (401 if "auth" in settings else 200)
        assert len(server.passed) == 1


def test_by_another_address_than_loopback_a_batch_comes_to_the_application(tmp_path: Path):
    with running(tmp_path, at="") as server:
        run = server.start_run()
        assert Wire(server, to="127.0.0.2").ask(run["id"], first(run))[0] == 200
        assert len(server.passed) == 1
