"""How a request leaves: in one part where it is short, so that the server wakes once for it."""

from __future__ import annotations

import http.client
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from gradspectra.errors import ServerAway
from gradspectra.http_client import JOINED_BYTES, HttpClient
from gradspectra.slow_lines import PIECE


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What goes to the socket."""
    found: list[bytes] = []
    monkeypatch.setattr(http.client.HTTPConnection, "send", lambda _self, data: found.append(data))
    return found


@pytest.mark.parametrize("server", ["http://localhost", "https://localhost"])
@pytest.mark.parametrize("body", [b"", b"x" * JOINED_BYTES])
def test_a_short_request_goes_out_in_one_part(parts: list[bytes], server: str, body: bytes) -> None:
    HttpClient(server)._connection.request("POST", "/x", body, {"A": "b"})
    (part,) = parts
    head, _, rest = part.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /x HTTP/1.1\r\n")
    assert b"\r\nA: b" in head
    assert rest == body


def test_a_long_body_goes_out_in_pieces_that_are_not_copied(parts: list[Any]) -> None:
    body = b"x" * (2 * PIECE + 1)
    HttpClient("http://localhost")._connection.request("POST", "/x", body)
    assert parts[0].endswith(b"\r\n\r\n")
    assert all(part.obj is body for part in parts[1:])
    assert [len(part) for part in parts[1:]] == [PIECE, PIECE, 1]


@contextmanager
def slow_server(pause: float, ends: bool = True) -> Iterator[str]:
    """Takes 64 KiB of a request at a time, with a pause after each, and answers at its end, if it is to end."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 15)
    listener.bind(("127.0.0.1", 0))
    listener.listen()

    def take() -> None:
        connection = listener.accept()[0]
        with connection, suppress(OSError):
            got = b""
            while not got.endswith(b"END"):
                piece = connection.recv(1 << 16)
                if not piece:
                    return
                got += piece
                time.sleep(pause)
                if not ends and len(got) > 1 << 18:
                    stopped.wait(60)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    stopped, thread = threading.Event(), threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopped.set()
        thread.join(60)
        listener.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is on its way")
def test_a_line_on_which_something_still_goes_is_not_given_up() -> None:
    body = b"x" * (4 << 20) + b"END"
    with slow_server(pause=0.05) as server:
        began = time.monotonic()
        assert HttpClient(server, timeout=0.8).request("POST", "/x", body).status == 200
    assert time.monotonic() - began > 2 * 0.8, "the line was not slow"


def test_a_line_on_which_nothing_goes_any_more_is_given_up() -> None:
    body = b"x" * (32 << 20) + b"END"
    with slow_server(pause=0.0, ends=False) as server, pytest.raises(ServerAway, match="timed out"):
        HttpClient(server, timeout=0.5).request("POST", "/x", body)


def test_nothing_of_a_request_that_failed_goes_out_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bytes] = []

    def send(_self: object, data: bytes) -> None:
        if not found:
            found.append(b"")
            raise BrokenPipeError
        found.append(data)

    monkeypatch.setattr(http.client.HTTPConnection, "send", send)
    connection = HttpClient("http://localhost")._connection
    with pytest.raises(BrokenPipeError):
        connection.request("POST", "/first", b"1")
    connection.close()
    connection.request("POST", "/second", b"2")
    assert found[1].startswith(b"POST /second")
    assert len(found) == 2
