"""The head of an answer: the plain one is read without the library's parser of mail, any other as the library does."""

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from gradspectra.errors import ServerAway
from gradspectra.http_client import Answer, HttpClient

PLAIN = b"HTTP/1.1 200 OK\r\ndate: now\r\nContent-Length: 2\r\ncontent-type: application/json\r\nx: a: b  c\r\n\r\n{}"
Serve = Callable[[list[list[bytes]]], HttpClient]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A server that sends the given parts to one request after the other, over one connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(answers: list[list[bytes]]) -> None:
        connection, _ = listener.accept()
        with connection:
            for parts in answers:
                connection.recv(1 << 16)
                for part in parts:
                    connection.sendall(part)
                    time.sleep(0.02 * (len(parts) > 1))

    def served(answers: list[list[bytes]]) -> HttpClient:
        threading.Thread(target=answer, args=(answers,), daemon=True).start()
        return HttpClient(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=5)

    with listener:
        yield served


def test_a_plain_head_is_not_parsed_as_mail(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http.client, "parse_headers", None)
    client = serve([[PLAIN], [PLAIN.replace(b"200 OK", b"409 Conflict").replace(b"date: now", b"retry-after: 7")]])
    assert client.request("GET", "/a") == Answer(200, b"{}", "application/json", None)
    kept = client._connection.sock
    assert client.request("GET", "/b") == Answer(409, b"{}", "application/json", 7.0)
    assert client._connection.sock is kept


def test_what_is_read_of_a_plain_head_is_what_the_library_reads(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    client = serve([[PLAIN], [PLAIN]])
    seen = []
    for response_class in (type(client._connection).response_class, http.client.HTTPResponse):
        monkeypatch.setattr(type(client._connection), "response_class", response_class)
        client._connection.request("GET", "/a")
        response = client._connection.getresponse()
        values = [response.getheader(name) for name in ("Date", "X", "Content-Type", "Nothing")]
        common = response.status, response.code, response.reason, response.version, response.length
        seen.append((*common, response.will_close, response.chunked, response.headers.items(), values, response.read()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("parts", "body"),
    [
        ([PLAIN[:7], PLAIN[7:60], PLAIN[60:-1], PLAIN[-1:]], b"{}"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN], b"{}"),
        ([PLAIN.replace(b"Content-Length: 2", b"transfer-encoding: chunked")[:-2] + b"2\r\n{}\r\n0\r\n\r\n"], b"{}"),
        ([PLAIN.replace(b"date: now", b"x-folded: a\r\n b")], b"{}"),
        ([PLAIN.replace(b"date: now", b"x: twice")], b"{}"),
        ([PLAIN.replace(b"date: now", b"empty: ")], b"{}"),
        ([b"HTTP/1.1 204 No Content\r\nx: y\r\n\r\n"], b""),
        ([PLAIN.replace(b": 2", b": 0")[:-2]], b""),
    ],
    ids=["in pieces", "after a 100", "chunked", "folded", "twice", "empty", "204", "nothing"],
)
def test_any_other_head_is_read_too_and_the_connection_stays(serve: Serve, parts: list[bytes], body: bytes) -> None:
    client = serve([parts, [PLAIN]])
    assert client.request("GET", "/a").body == body
    kept = client._connection.sock
    assert kept is not None
    assert client.request("GET", "/b") == Answer(200, b"{}", "application/json", None)
    assert client._connection.sock is kept


def test_an_answer_that_closes_the_connection_is_followed_on_a_new_one(serve: Serve) -> None:
    client = serve([[PLAIN.replace(b"date: now", b"Connection: close")]])
    assert client.request("GET", "/a").body == b"{}"
    assert client._connection.sock is None


@pytest.mark.parametrize("part", [b"", PLAIN[:-1], b"SSH-2.0\r\n\r\n"])
def test_an_answer_that_breaks_off_or_is_none_is_no_answer(serve: Serve, part: bytes) -> None:
    with pytest.raises(ServerAway):
        serve([[part]]).request("GET", "/a")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (501, b"<html>", "HTTP 501 — is GRADSPECTRA_SERVER the URL of a gradspectra server?"),
        (403, b'{"error": "no"}', "HTTP 403 — is GRADSPECTRA_SERVER the URL of a gradspectra server?"),
        (404, b'{"detail": "Not Found"}', "Not Found — is GRADSPECTRA_SERVER the URL of a gradspectra server?"),
        (503, b"", "HTTP 503"),
        (422, b'{"detail": "a limit"}', "a limit"),
    ],
)
def test_a_refusal_that_no_server_of_ours_gives_asks_whether_it_is_one(status: int, body: bytes, said: str) -> None:
    assert str(Answer(status, body, "", None).problem()) == f"the server answered {status}: {said}"
