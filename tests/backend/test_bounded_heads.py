"""Heads of requests that go on and on, or never end: the connection is closed, without a token being asked for."""

from __future__ import annotations

import socket

import pytest
from backend.connections import connected
from gradspectra_backend import bounded_heads
from gradspectra_backend.batch_protocol import BatchProtocol
from gradspectra_backend.bounded_heads import LONGEST_FIELDS, BoundedHeads
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

BEGINNING = b"POST / HTTP/1.1\r\nHost: a\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await PlainTextResponse(f"{len(body)} bytes")(scope, receive, send)


def answer(connection: socket.socket) -> bytes:
    """All that comes until the other end closes, or the body of an answer has come."""
    got = b""
    while not got.endswith(b" bytes"):
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return got
        if not piece:
            break
        got += piece
    return got


@pytest.mark.parametrize(
    "before",
    [BEGINNING + b"X: ", BEGINNING + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: "],
    ids=["head", "behind a body"],
)
@pytest.mark.parametrize("piece", [b"a" * 4096, b"a: b\r\n" * 700], ids=["one field", "many fields"])
def test_a_head_without_an_end_closes_the_connection(before: bytes, piece: bytes) -> None:
    with connected(BoundedHeads, echo) as connection:
        connection.sendall(before)
        sent = 0
        try:
            while sent < 64 * LONGEST_FIELDS:
                connection.sendall(piece)
                sent += len(piece)
        except OSError:
            return
        pytest.fail(f"{sent} bytes of a head were taken")


def test_long_heads_and_bodies_that_end_are_taken_one_after_another() -> None:
    with connected(BoundedHeads, echo) as connection:
        for _ in range(3):
            connection.sendall(
                BEGINNING + b"X: " + b"a" * (LONGEST_FIELDS - 1000) + b"\r\nContent-Length: 3\r\n\r\nabc"
            )
            assert answer(connection).endswith(b"\r\n\r\n3 bytes")
            chunk = b"%x\r\n" % LONGEST_FIELDS + b"a" * LONGEST_FIELDS + b"\r\n"
            connection.sendall(BEGINNING + b"Transfer-Encoding: chunked\r\n\r\n" + 5 * chunk + b"0\r\nX: y\r\n\r\n")
            assert answer(connection).endswith(b"\r\n\r\n%d bytes" % (5 * LONGEST_FIELDS))


@pytest.mark.parametrize("beginning", [b"", b"POST / HTTP/1.1\r\nHo"], ids=["nothing", "half a head"])
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_who_does_not_say_what_is_wanted_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, beginning: bytes, used: bool
) -> None:
    monkeypatch.setattr(bounded_heads, "HEAD_SECONDS", 1.0)
    with connected(BoundedHeads, echo) as connection:
        if used:
            connection.sendall(BEGINNING + b"Content-Length: 3\r\n\r\nabc")
            assert answer(connection).endswith(b"3 bytes")
        connection.sendall(beginning)
        assert answer(connection) == b"", "closed"


def test_a_body_may_take_longer_than_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_heads, "HEAD_SECONDS", 0.3)
    with connected(BoundedHeads, echo) as connection:
        connection.sendall(BEGINNING + b"Content-Length: 3\r\n\r\na")
        connection.settimeout(1.0)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(60)
        connection.sendall(b"bc")
        assert answer(connection).endswith(b"3 bytes")


def test_connections_of_batches_are_bounded_too() -> None:
    assert issubclass(BatchProtocol, BoundedHeads)
