"""Bodies that come too slowly, or stop: they are answered 408, and nothing of them is stored."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backend.connections import connected
from backend.servers import serving
from gradspectra_backend import paced_bodies
from gradspectra_backend.app import create_app
from gradspectra_backend.batch_protocol import BatchProtocol
from gradspectra_backend.paced_bodies import PacedBodies
from gradspectra_backend.problems import KINDS
from gradspectra_backend.settings import Settings
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

HEAD = b"POST /%b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
AT_LENGTH = HEAD + b"Content-Length: 100\r\n\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers how long the body was; /refused and /stream do not read it."""
    if scope["path"] == "/stream":

        async def pieces() -> Iterator[bytes]:  # type: ignore[misc]
            yield b"begun"
            await receive()

        await StreamingResponse(pieces())(scope, receive, send)  # type: ignore[arg-type]
        return
    said = "refused" if scope["path"] == "/refused" else f"{len(await Request(scope, receive).body())} bytes"
    await PlainTextResponse(said)(scope, receive, send)


def to_the_end(connection: socket.socket) -> bytes:
    """All that comes until the other end closes; a minute without anything is an error."""
    got = b""
    while piece := connection.recv(65536):
        got += piece
    return got


def answered(connection: socket.socket, end: bytes) -> bytes:
    """All that comes up to what an answer ends with."""
    got = b""
    while not got.endswith(end):
        piece = connection.recv(65536)
        assert piece, got
        got += piece
    return got


def comes_to(length: int, found: list[Any]) -> None:
    """Waits for so many entries, ten seconds at most."""
    until = time.monotonic() + 10
    while len(found) < length:
        assert time.monotonic() < until, found
        time.sleep(0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paced_bodies, "BODY_SECONDS", 0.3)
    monkeypatch.setattr(paced_bodies, "LEAST_BYTES", 1000)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "beginning",
    [
        AT_LENGTH % b"",
        AT_LENGTH % b"" + b"a" * 99,
        HEAD % b"" + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab",
        HEAD % b"" + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n",
    ],
    ids=["nothing", "all but the last byte", "half a chunk", "no end of the fields behind"],
)
def test_a_body_that_stops_is_answered_408_and_the_connection_closed(beginning: bytes) -> None:
    with connected(PacedBodies, echo) as connection:
        connection.sendall(beginning)
        head, _, body = to_the_end(connection).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 408 Request Timeout"
    assert {"connection: close", "x-content-type-options: nosniff", f"content-length: {len(body)}"} <= {
        line.lower() for line in lines
    }
    document = json.loads(body)
    assert (document["type"], document["status"]) == ("/problems/too-slow", 408)
    assert document["detail"] == "of the body came fewer than 1,000 bytes in 0.3 s, and not its end"
    assert document["remedy"] == KINDS["too-slow"].remedy


@pytest.mark.usefixtures("impatient")
def test_bytes_that_drip_do_not_keep_a_connection() -> None:
    with connected(PacedBodies, echo) as connection:
        connection.sendall(HEAD % b"" + b"Content-Length: 10000000\r\n\r\n")
        connection.settimeout(0.02)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            connection.sendall(b"a")
            try:
                assert connection.recv(12) == b"HTTP/1.1 408"
                return
            except TimeoutError:
                pass
    pytest.fail("the server went on waiting")


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that had come at each look at a body; a look each half second."""
    found: list[int] = []
    look = paced_bodies.PacedBodies._look_at_body

    def noting(self: paced_bodies.PacedBodies) -> None:
        found.append(self._came)
        look(self)

    monkeypatch.setattr(paced_bodies, "BODY_SECONDS", 0.5)
    monkeypatch.setattr(paced_bodies.PacedBodies, "_look_at_body", noting)
    return found


def test_a_body_that_takes_long_and_comes_fast_enough_is_read(
    monkeypatch: pytest.MonkeyPatch, looks: list[int]
) -> None:
    monkeypatch.setattr(paced_bodies, "LEAST_BYTES", 1)
    with connected(PacedBodies, echo) as connection:
        connection.sendall(HEAD % b"" + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        while len(looks) < 2:
            connection.sendall(b"1\r\na\r\n")
            sent += 1
            time.sleep(0.002)
        connection.sendall(b"0\r\n\r\n")
        assert answered(connection, b" bytes").endswith(b"\r\n\r\n%d bytes" % sent)
    assert 0 not in looks


def test_who_is_not_read_is_not_too_slow(monkeypatch: pytest.MonkeyPatch, looks: list[int]) -> None:
    read = threading.Event()

    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.to_thread(read.wait, 60)
        await echo(scope, receive, send)

    body = b"a" * (8 << 20)
    monkeypatch.setattr(paced_bodies, "LEAST_BYTES", len(body))
    with connected(PacedBodies, late) as connection:
        sender = threading.Thread(
            target=connection.sendall,
            daemon=True,
            args=(HEAD % b"" + b"Content-Length: %d\r\n\r\n" % len(body) + body,),
        )
        sender.start()
        comes_to(3, looks)
        read.set()
        assert answered(connection, b" bytes").endswith(b"\r\n\r\n%d bytes" % len(body))
        sender.join(60)
    assert looks[1:3] == [0, 0]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("path", "answer"), [(b"refused", b"refused"), (b"stream", b"5\r\nbegun\r\n")])
def test_an_answer_before_the_body_has_none_after_it_and_the_connection_is_closed(path: bytes, answer: bytes) -> None:
    with connected(PacedBodies, echo) as connection:
        connection.sendall(AT_LENGTH % path + b"a" * 50)
        assert to_the_end(connection).partition(b"\r\n\r\n")[2] == answer


def test_a_connection_serves_again_and_again_and_no_look_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    received = paced_bodies.PacedBodies.data_received
    waits: list[bool] = []

    def noting(self: paced_bodies.PacedBodies, data: bytes) -> None:
        received(self, data)
        waits.append(self._look is not None)

    monkeypatch.setattr(paced_bodies.PacedBodies, "data_received", noting)
    with connected(PacedBodies, echo) as connection:
        for turn in range(3):
            connection.sendall(AT_LENGTH % b"" + b"a" * 50)
            comes_to(2 * turn + 1, waits)
            connection.sendall(b"a" * 50)
            assert answered(connection, b" bytes").endswith(b"\r\n\r\n100 bytes")
    assert waits == [True, False] * 3


@pytest.mark.usefixtures("impatient")
def test_nothing_is_stored_of_a_run_that_was_not_told_to_its_end(tmp_path: Path) -> None:
    app = create_app(Settings(data=tmp_path))
    body = json.dumps({"project": "p", "name": "n", "key": "k" * 12}).encode()
    with connected(PacedBodies, app, "on") as connection:
        connection.sendall(HEAD % b"api/v1/runs" + b"Content-Length: %d\r\n\r\n" % len(body) + body[:-1])
        assert to_the_end(connection).startswith(b"HTTP/1.1 408")
        with socket.create_connection(connection.getpeername(), 60) as other:
            other.sendall(b"GET /api/v1/runs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert json.loads(to_the_end(other).partition(b"\r\n\r\n")[2])["items"] == []


def test_a_server_that_stops_does_not_wait_for_the_rest_of_a_body(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), 60) as connection:
            connection.sendall(AT_LENGTH % b"api/v1/runs" + b"{")
            with socket.create_connection((host, int(port)), 60) as other:  # what came before is read by now
                other.sendall(b"GET /api/v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                assert to_the_end(other).startswith(b"HTTP/1.1 200")
            server.process.send_signal(signal.SIGTERM)
            head, _, body = to_the_end(connection).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        assert json.loads(body)["detail"] == "the server stops, and the body has not come to its end"
        assert server.stopped(signal.SIGTERM)[1] == ""


def test_connections_of_batches_are_paced_too() -> None:
    assert issubclass(BatchProtocol, paced_bodies.PacedBodies)
