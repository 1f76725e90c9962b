"""How a request leaves: in one part where it is short, so that the server wakes once for it."""

from __future__ import annotations

import http.client

import pytest
from gradspectra.http_client import JOINED_BYTES, HttpClient


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


def test_a_long_body_is_not_copied(parts: list[bytes]) -> None:
    body = b"x" * (JOINED_BYTES + 1)
    HttpClient("http://localhost")._connection.request("POST", "/x", body)
    assert parts[0].endswith(b"\r\n\r\n")
    assert parts[1] is body
    assert len(parts) == 2


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
