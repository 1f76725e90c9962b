"""The short way of a batch of records: taken without the framework's routes, and answered as they would."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from backend.callers import API, BINARY, Caller, batch
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.settings import load_settings
from gradspectra_backend.short_way import ShortWay
from gradspectra_core.wire import encode_batch
from uvicorn.protocols.http.auto import AutoHTTPProtocol

AT = "http://127.0.0.1:7117"
PLAIN = {**BINARY, "Accept": "application/json"}
"""What the agent sends besides what every client does."""


def test_a_batch_needs_none_of_the_frameworks_routes(tmp_path: Path) -> None:
    app = create_app(load_settings(data=tmp_path))
    with TestClient(app, base_url=AT) as client:
        caller = Caller(client)
        run = caller.start()
        app.router.routes.clear()
        assert caller.must_send(run["id"], batch(run["session"], 1, [1]))["status"] == "stored"


@pytest.fixture(params=["local", "tokens"])
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[TestClient]]:
    """Callers of a server with the short way, and of one without."""
    clients = []
    for name in ("short", "long"):
        auth = "tokens" if request.param == "tokens" else "auto"
        app = create_app(load_settings(data=tmp_path / name, max_body=2**16, auth=auth))
        if name == "long":
            app.user_middleware = [entry for entry in app.user_middleware if entry.cls is not ShortWay]
        clients.append(TestClient(app, base_url=AT, raise_server_exceptions=False))
    with clients[0], clients[1]:
        yield clients


@pytest.mark.parametrize(
    ("run", "body", "headers"),
    [
        ("nowhere", encode_batch(batch("s", 1, [1])), BINARY),
        ("nowhere", b"noise", BINARY),
        ("nowhere", b"{}", {"Content-Type": "text/plain"}),
        ("nowhere", b"{", {"Content-Type": "application/json"}),
        ("nowhere", b"x" * (2**16 + 1), BINARY),
        ("nowhere", b"x", {**BINARY, "Content-Encoding": "gzip"}),
        ("nowhere", b"", {**BINARY, "Sec-Fetch-Site": "cross-site"}),
        ("nowhere", b"", {**BINARY, "Authorization": "Bearer gs_unknown"}),
        ("nowhere", b"", {**BINARY, "Host": "evil.example"}),
        ("nowhere?at=%00", b"", BINARY),
        ("x" * 65, b"", BINARY),
        ("no where", b"", BINARY),
    ],
)
def test_what_is_refused_is_answered_as_by_the_route(
    both: list[TestClient], run: str, body: bytes, headers: dict[str, str]
) -> None:
    for client in both:
        client.get(f"{API}/health")  # from then on the name of the host is known
    answers = [client.post(f"{API}/runs/{run}/records", content=body, headers=headers) for client in both]
    assert answers[0].status_code >= 400
    assert told(answers[0]) == told(answers[1])


def test_a_body_that_grows_too_large_unannounced_is_refused_as_by_the_route(both: list[TestClient]) -> None:
    def chunks() -> Iterator[bytes]:
        yield from [b"x" * 2**15] * 3

    answers = [client.post(f"{API}/runs/nowhere/records", content=chunks(), headers=BINARY) for client in both]
    assert told(answers[0]) == told(answers[1])


def test_what_is_taken_is_answered_as_by_the_route(both: list[TestClient]) -> None:
    if both[0].get(f"{API}/runs").status_code == 401:
        pytest.skip("asks for a token, which leads the other way")
    answers = []
    for client in both:
        caller = Caller(client)
        run = caller.start()
        at = f"{API}/runs/{run['id']}/records"
        bodies = [encode_batch(batch(run["session"], number, [number])) for number in (1, 2, 2, 4)]
        answers.append([told(client.post(at, content=body, headers=PLAIN)) for body in bodies])
    assert answers[0] == answers[1]
    assert [status for status, _, _ in answers[0]] == [200, 200, 200, 409]


def test_a_batch_that_would_have_to_wait_leaves_the_event_loop_free(tmp_path: Path) -> None:
    app = create_app(load_settings(data=tmp_path))
    with TestClient(app, base_url=AT) as client, ThreadPoolExecutor(1) as pool:
        run = Caller(client).start()
        body = encode_batch(batch(run["session"], 1, [1]))
        with app.state.context.store.write():
            waiting = pool.submit(client.post, f"{API}/runs/{run['id']}/records", content=body, headers=PLAIN)
            assert client.get(f"{API}/health").status_code == 200
            assert not waiting.done()
        assert waiting.result(60).json()["status"] == "stored"


def test_other_methods_are_the_routes_business(both: list[TestClient]) -> None:
    answers = [client.put(f"{API}/runs/nowhere/records", content=b"", headers=BINARY) for client in both]
    assert told(answers[0]) == told(answers[1])


def told(answer: httpx2.Response) -> tuple[int, bytes, dict[str, str]]:
    return answer.status_code, answer.content, dict(answer.headers)


def test_http_is_read_by_the_parser_that_the_server_extra_brings() -> None:
    assert AutoHTTPProtocol.__name__ == "HttpToolsProtocol"
