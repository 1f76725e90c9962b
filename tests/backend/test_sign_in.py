"""Who may call: loopback without tokens, everyone else with one; cookies only from the server's own page."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from backend.callers import API, Caller, batch
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.login_limit import LoginLimit
from gradspectra_backend.problems import Problem
from gradspectra_backend.settings import load_settings
from gradspectra_store.tokens import create_token

BASE = "http://train.example:7117"
SAME = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
def guarded(tmp_path) -> Iterator[SimpleNamespace]:
    """A server that asks for tokens, with one token of each scope and a client without any."""
    app = create_app(load_settings(data=tmp_path, allowed_hosts="train.example"))
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as client:
        store = app.state.context.store
        with store.write() as conn:
            plain = {scope: create_token(conn, scope, [scope], 0.0)[1] for scope in ("ingest", "read", "admin")}
        yield SimpleNamespace(client=client, app=app, **plain)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_a_call_without_a_token_is_401_and_says_how_to_get_one(guarded):
    for path in ("/runs", "/alerts", "/live", "/tokens", "/metrics"):
        answer = guarded.client.get(API + path)
        assert answer.status_code == 401
        assert answer.json()["type"] == "/problems/unauthorized"
        assert "gradspectra token create" in answer.json()["remedy"]
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_browser_without_a_session_is_led_to_the_sign_in(guarded):
    page = guarded.client.get(f"{API}/runs/any/export", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (page.status_code, page.headers["www-authenticate"]) == (401, "Bearer")
    assert '<a href="/login">Sign in</a>' in page.text


def test_a_long_body_is_read_of_nobody_who_is_not_known(guarded):
    json = {"Content-Type": "application/json"}
    long = b"[" * (2**16 + 1)
    for content in (long, (b"[" for _ in range(9))):
        answer = guarded.client.post(f"{API}/runs", content=content, headers=json)
        assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthorized")
    known = guarded.client.post(f"{API}/runs", content=long, headers=json | bearer(guarded.ingest))
    assert (known.status_code, known.json()["type"]) == (400, "/problems/malformed-body")


@pytest.mark.parametrize(("path", "most"), [("/login", 2**16), (f"{API}/runs", 2**21), (f"{API}/tokens", 2**21)])
def test_no_call_but_a_batch_has_a_body_that_takes_seconds_to_read(guarded, path, most):
    """JSON is read in the event loop: 32 MiB of it, without a token, held up all others for ten seconds."""
    json = {"Content-Type": "application/json"} | ({} if path == "/login" else bearer(guarded.admin))
    pieces = (b"[" * 2**12 for _ in range(most // 2**12 + 1))
    for content in (b"[" * (most + 1), pieces):
        answer = guarded.client.post(path, content=content, headers=json)
        assert (answer.status_code, answer.json().get("limit", most)) == (413, most)
    assert guarded.client.post(path, content=b"[" * most, headers=json).status_code == 400


def test_health_and_the_page_need_no_token(guarded):
    for path in ("/api/v1/health", "/api/v1/ready", "/", "/login", "/docs", "/openapi.json"):
        assert guarded.client.get(path).status_code == 200


@pytest.mark.parametrize("header", ["Bearer gs_wrong", "Bearer", "Basic abc", "Bearer ", "Bearer \xe9"])
def test_a_wrong_token_is_401(guarded, header):
    answer = guarded.client.get(f"{API}/runs", headers={"Authorization": header.encode("latin-1")})
    assert answer.status_code == 401


def test_each_scope_may_do_its_own_and_admin_everything(guarded):
    client = guarded.client
    body = {"project": "p", "name": "r"}
    assert client.post(f"{API}/runs", json=body, headers=bearer(guarded.read)).status_code == 403
    made = client.post(f"{API}/runs", json=body, headers=bearer(guarded.ingest))
    assert made.status_code == 201
    path = f"{API}/runs/{made.json()['id']}"
    assert client.get(path, headers=bearer(guarded.ingest)).status_code == 403
    assert client.get(path, headers=bearer(guarded.read)).status_code == 200
    for scope in ("ingest", "read"):
        refused = client.delete(path, headers=bearer(getattr(guarded, scope)))
        assert refused.status_code == 403
        assert refused.json()["scope"] == "admin"
    assert client.get(f"{API}/tokens", headers=bearer(guarded.read)).status_code == 403
    assert client.delete(path, headers=bearer(guarded.admin)).status_code == 204


@pytest.mark.parametrize("scope", ["ingest", "read", "admin"])
def test_whoever_has_a_token_may_ask_what_it_is_and_sign_out(guarded, scope):
    token = getattr(guarded, scope)
    told = guarded.client.get(f"{API}/me", headers=bearer(token))
    assert told.json() == {"scopes": [scope], "how": "token", "tokens_required": True}
    assert guarded.client.post("/login", json={"token": token}, headers=SAME).status_code == 200
    assert guarded.client.get(f"{API}/me").json()["how"] == "cookie"
    assert guarded.client.post("/logout", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert guarded.client.post("/logout", headers=SAME).status_code == 204
    assert guarded.client.get(f"{API}/me").status_code == 401


def test_a_misspelt_scope_makes_no_token(guarded):
    wanted = {"name": "reader", "scope": ["read"]}
    refused = guarded.client.post(f"{API}/tokens", json=wanted, headers=bearer(guarded.admin))
    assert (refused.status_code, refused.json()["field"]) == (422, "scope")


def test_a_revoked_token_ends_with_the_sessions_it_opened(guarded):
    made = guarded.client.post(f"{API}/tokens", json={"name": "x", "scopes": ["read"]}, headers=bearer(guarded.admin))
    token = made.json()["token"]
    assert token.startswith("gs_")
    listed = guarded.client.get(f"{API}/tokens", headers=bearer(guarded.admin)).text
    assert token not in listed
    assert guarded.client.post("/login", json={"token": token}).status_code == 200
    assert guarded.client.get(f"{API}/runs").status_code == 200
    path = f"{API}/tokens/{made.json()['id']}"
    assert guarded.client.delete(path, headers=bearer(guarded.admin)).status_code == 204
    assert guarded.client.get(f"{API}/runs").status_code == 401
    assert guarded.client.get(f"{API}/runs", headers=bearer(token)).status_code == 401
    again = guarded.client.delete(path, headers=bearer(guarded.admin))
    assert (again.status_code, again.json()["type"]) == (404, "/problems/unknown-token")


def test_a_browser_signs_in_with_a_cookie_its_scripts_cannot_read(guarded):
    answer = guarded.client.post("/login", json={"token": guarded.admin}, headers=SAME)
    assert answer.status_code == 200
    assert answer.json()["scopes"] == ["admin"]
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    assert guarded.client.get(f"{API}/runs").status_code == 200
    assert guarded.client.get(f"{API}/me").json() == {"scopes": ["admin"], "how": "cookie", "tokens_required": True}
    assert guarded.client.post("/logout", headers=SAME).status_code == 204
    assert guarded.client.get(f"{API}/runs").status_code == 401


def test_the_cookie_is_secure_over_https(guarded):
    with TestClient(guarded.app, base_url="https://train.example") as client:
        assert "Secure" in client.post("/login", json={"token": guarded.read}).headers["set-cookie"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Origin": BASE}, 201),
        ({}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[::1"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": BASE}, 403),
    ],
)
def test_a_cookie_changes_things_only_from_the_servers_own_page(guarded, headers, status):
    guarded.client.post("/login", json={"token": guarded.admin})
    answer = guarded.client.post(f"{API}/runs", json={"project": "p", "name": "r"}, headers=headers)
    assert answer.status_code == status


def test_a_bearer_call_needs_no_origin(guarded):
    headers = bearer(guarded.admin) | {"Sec-Fetch-Site": "cross-site"}
    assert guarded.client.post(f"{API}/runs", json={"project": "p", "name": "r"}, headers=headers).status_code == 201


def test_a_foreign_page_cannot_change_a_loopback_server(caller: Caller):
    run = caller.start()
    foreign = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    assert caller.client.post(f"{API}/runs", json={"project": "p"}, headers=foreign).status_code == 403
    assert caller.client.delete(f"{API}/runs/{run['id']}", headers=foreign).status_code == 403
    assert caller.send(run["id"], batch(run["session"], 1, [1])).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::2]"])
def test_a_loopback_server_refuses_foreign_host_names(caller: Caller, host):
    answer = caller.client.get(f"{API}/runs", headers={"Host": host})
    assert answer.status_code == 400
    assert answer.json()["type"] == "/problems/wrong-host"


@pytest.mark.parametrize("host", ["localhost", "localhost:7117", "127.0.0.1:1", "[::1]:7117"])
def test_a_loopback_server_answers_to_its_own_names(caller: Caller, host):
    for _ in range(2):
        assert caller.client.get(f"{API}/runs", headers={"Host": host}).status_code == 200
    assert caller.client.get(f"{API}/runs", headers={"Host": f"{host}.evil.example"}).status_code == 400


def test_a_call_from_another_machine_with_a_forged_host_is_refused(settings):
    with TestClient(create_app(settings), base_url="http://192.168.3.4:7117") as client:
        answer = client.get(f"{API}/runs", headers={"Host": "localhost"})
        assert answer.status_code == 401
        assert "GRADSPECTRA_HOST" in answer.json()["remedy"]


def test_failed_sign_ins_are_slowed_down(guarded):
    for _ in range(10):
        assert guarded.client.post("/login", json={"token": "gs_guess"}).status_code == 401
    answer = guarded.client.post("/login", json={"token": guarded.read})
    assert (answer.status_code, answer.json()["type"]) == (429, "/problems/too-many-requests")
    assert 1 <= int(answer.headers["retry-after"]) <= 61


def test_the_brake_is_per_address_and_forgets_after_a_minute():
    limit = LoginLimit(tries=2, seconds=60)
    for when in (0.0, 1.0):
        limit.check("a", when)
        limit.failed("a", when)
    with pytest.raises(Problem, match="2 failed"):
        limit.check("a", 2.0)
    limit.check("b", 2.0)
    limit.check("a", 61.5)


def test_a_session_ends_after_its_days(guarded):
    guarded.client.post("/login", json={"token": guarded.read})
    context = guarded.app.state.context
    now = context.clock()
    context.clock = lambda: now + 15 * 86400
    assert guarded.client.get(f"{API}/runs").status_code == 401


def test_every_answer_carries_the_security_headers(guarded):
    for path in ("/", "/docs", f"{API}/health", f"{API}/runs", "/nothing", "/static/index.html"):
        headers = guarded.client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "script-src 'self';" in policy
        assert "unsafe-eval" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
