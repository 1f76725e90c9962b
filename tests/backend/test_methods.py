"""What HTTP promises of every address: HEAD as GET, Allow in full, and no address that leads to another."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx2
import pytest
from backend.callers import API, Caller, batch
from backend.servers import Running, serving
from fastapi.testclient import TestClient
from gradspectra_backend import export_tables
from gradspectra_backend.app import create_app
from gradspectra_frontend import assets

READS = ("", "/series", "/layers", "/attempts", "/gaps", "/alerts", "/incidents", "/suggestions", "/figures/loss")


@pytest.fixture(scope="module")
def caller(shared_caller: Caller) -> Caller:
    return shared_caller


@pytest.fixture(scope="module")
def run(caller: Caller) -> str:
    run = caller.start()
    caller.must_send(run["id"], batch(run["session"], 1, [1, 2, 3]))
    return str(run["id"])


def test_head_is_get_without_the_body(caller: Caller, run: str):
    pages = (
        "/",
        "/runs/any",
        "/alerts",
        "/docs",
        "/problems",
        "/openapi.json",
        "/static/icon.svg",
        assets.plotly_url(),
    )
    lists = ("/runs", "/projects", "/alerts", "/mutes", "/channels", "/tokens", "/deliveries", "/retention", "/health")
    reads = [f"{API}/runs/{run}{path}" for path in READS]
    for path in (*pages, *(API + path for path in (*lists, "/me")), *reads, f"{API}/nothing", f"{API}/runs/nowhere"):
        whole, head = caller.client.get(path), caller.client.head(path)
        assert (head.status_code, head.content) == (whole.status_code, b""), path
        assert dict(head.headers) == dict(whole.headers), path


def test_head_of_what_has_not_changed_is_304(caller: Caller, run: str):
    address = f"{API}/runs/{run}/series"
    tag = caller.client.head(address).headers["etag"]
    again = caller.client.head(address, headers={"If-None-Match": tag})
    assert (again.status_code, again.headers["etag"]) == (304, tag)


def test_head_of_an_export_reads_no_further_than_its_first_rows(caller: Caller, run: str, monkeypatch):
    monkeypatch.setattr(export_tables, "VALUES_AT_ONCE", 1)
    monkeypatch.setattr(export_tables, "MOST_GROWTH", 1)
    real, reads = export_tables.read.read_recorded, []

    def counted(*given: object) -> object:
        reads.append(given)
        return real(*given)

    monkeypatch.setattr(export_tables.read, "read_recorded", counted)
    address = f"{API}/runs/{run}/export"
    head = caller.client.head(address, params={"format": "csv"})
    assert (head.status_code, head.headers["content-type"], head.content) == (200, "text/csv; charset=utf-8", b"")
    assert len(reads) == 1
    whole = caller.client.get(address)
    assert head.headers["content-disposition"] == whole.headers["content-disposition"]
    assert len(reads) == 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("data")) as running:
        yield running


def test_a_real_server_answers_head_and_goes_on_on_the_same_connection(server: Running):
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    for path in ("/", f"{API}/runs", f"{API}/health"):
        connection.request("HEAD", path)
        head = connection.getresponse()
        assert (head.status, head.read()) == (200, b"")
        connection.request("GET", path)
        whole = connection.getresponse()
        assert len(whole.read()) == int(head.headers["content-length"])
    connection.close()


def test_a_proxy_on_the_same_machine_is_believed_how_it_was_called(server: Running):
    for scheme in ("http", "https"):
        headers = {"X-Forwarded-Proto": scheme}
        made = httpx2.post(f"{server.url}{API}/runs", json={"project": "p"}, headers=headers, trust_env=False)
        assert made.json()["url"].startswith(f"{scheme}://127.0.0.1:")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", f"{API}/runs", "GET, HEAD, POST"),
        ("PUT", f"{API}/runs/any", "GET, HEAD, PATCH, DELETE"),
        ("GET", f"{API}/mutes/any/loss_spike", "PUT, DELETE"),
        ("HEAD", f"{API}/runs/any/records", "POST"),
        ("POST", f"{API}/live", "GET"),
        ("HEAD", f"{API}/live", "GET"),
        ("PUT", "/login", "GET, HEAD, POST"),
        ("POST", "/static/icon.svg", "GET, HEAD"),
        ("OPTIONS", f"{API}/runs", "GET, HEAD, POST"),
    ],
)
def test_a_method_that_an_address_does_not_take_is_told_which_it_takes(caller: Caller, method, path, allowed):
    refused = caller.client.request(method, path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/runs/", "/runs/any/", "/runs/any/records/", "/runs/any/series/", "/health/"])
def test_an_address_with_a_slash_at_its_end_is_none_and_leads_nowhere(caller: Caller, method: str, path: str):
    refused = caller.client.request(method, API + path, follow_redirects=False)
    assert (refused.status_code, refused.headers.get("location")) == (404, None)
    if method != "HEAD":
        assert refused.json()["detail"] == f"there is nothing at {API}{path}"
        assert refused.json()["remedy"] == f"Addresses here have no slash at their end: try {API}{path[:-1]}."


def test_no_address_leads_to_another_host(caller: Caller):
    for path in ("/alerts/", "/settings/", "/static", "/%2Fevil.example/", "/api/v1/", "/docs/"):
        assert caller.client.get(path, follow_redirects=False).status_code == 404


@pytest.mark.parametrize("content_type", ["application/x-www-form-urlencoded", "text/plain", None])
def test_a_body_that_is_not_said_to_be_json_is_told_so(caller: Caller, content_type: str | None):
    headers = {} if content_type is None else {"Content-Type": content_type}
    refused = caller.client.post(f"{API}/runs", content=b'{"project": "p", "name": "r"}', headers=headers)
    assert (refused.status_code, refused.json()["field"]) == (415, "Content-Type")
    assert "must be application/json" in refused.json()["detail"]


def test_what_nobody_foresaw_is_answered_with_the_headers_of_every_answer(settings, monkeypatch):
    with TestClient(create_app(settings), base_url="http://127.0.0.1:7117", raise_server_exceptions=False) as client:
        usual = client.get(f"{API}/runs").headers

        def bug(_: object) -> None:
            raise RuntimeError("nobody foresaw it")

        monkeypatch.setattr(type(client.app.state.context.store), "read", bug)
        failed = client.get(f"{API}/runs")
    assert failed.status_code == 500
    for name in ("content-security-policy", "x-content-type-options", "referrer-policy", "cache-control"):
        assert failed.headers[name] == usual[name]
