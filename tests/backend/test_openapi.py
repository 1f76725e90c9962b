"""Every call is tried with made-up input: no failure, no answer that the OpenAPI document does not tell of."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from backend.callers import API, Caller, batch, layer_block, spectrum_block, table
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.settings import load_settings
from gradspectra_core.records import Gap
from gradspectra_core.wire import CONTENT_TYPE
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

schemathesis.serializer.alias(CONTENT_TYPE, "application/octet-stream")
_folder = tempfile.TemporaryDirectory()
app = create_app(load_settings(data=Path(_folder.name)))
schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "127.0.0.1"})


@pytest.fixture(scope="module", autouse=True)
def _running() -> Iterator[None]:
    with TestClient(app, base_url="http://127.0.0.1:7117"):
        yield
    _folder.cleanup()


@schema.exclude(path_regex="/live$|/test$").parametrize()
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
def test_no_input_makes_a_call_fail(case):
    response = case.call(base_url="http://127.0.0.1:7117")
    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    case.validate_response(response, checks=checks)


def real_run(caller: Caller) -> dict[str, str]:
    """A run with every kind of number and an alert: what the places in addresses stand for."""
    run = caller.start(config={"lr": 0.1}, tags=["a"])
    of = table()
    whole = batch(
        run["session"],
        1,
        [1, 2],
        layer_table=of,
        layers=layer_block(of, [1, 2], grad_sq=[[1.0, float("nan")], [2.0, float("inf")]]),
        spectra=spectrum_block(of, 1, 0, [3.0, 1.0]),
        gaps=(Gap(3, 4, "spectra", "the spool was full"),),
        loss=[float("nan"), None],
    )
    caller.must_send(run["id"], whole)
    caller.derived(run["id"], 2)
    alert = caller.get(f"/runs/{run['id']}/alerts")["items"][0]["id"]
    places = {"run": run["id"], "session": run["session"], "alert": alert, "rule": "nonfinite", "layer": of.names[0]}
    return places | {"statistic": "grad_norm", "name": "loss"}


GETS: dict[str, dict[str, str]] = {
    "/runs/{run}/spectra": {"layer": "layers.0.up.weight"},
    "/runs/{run}/export": {"format": "json"},
    "/deliveries": {"limit": "5"},
    "/comparisons/curves": {"runs": "{run}"},
    "/comparisons/difference": {"runs": "{run},{another}"},
    "/comparisons/sweep": {"runs": "{run}"},
}
"""What calls are asked with beside what their addresses say."""

CHANGES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/runs", {"project": "p", "name": "another"}),
    (
        "POST",
        "/runs/{run}/records",
        {"session": "{session}", "sequence": 2, "complete_through": 5, "steps": [5], "times": [9.5]},
    ),
    ("POST", "/runs/{run}/heartbeat", {"session": "{session}", "overhead": "NaN"}),
    ("PATCH", "/runs/{run}", {"notes": "n", "stop_at_step": 9}),
    ("PATCH", "/alerts/{alert}", {"state": "acknowledged"}),
    ("PUT", "/mutes/{run}/{rule}", None),
    ("POST", "/tokens", {"name": "t", "scopes": ["read"]}),
    ("POST", "/channels", {"url": "http://127.0.0.1:9/hook"}),
]
ENDINGS: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/channels/{channel}/test", None),
    ("DELETE", "/mutes/{run}/{rule}", None),
    ("DELETE", "/tokens/{token}", None),
    ("DELETE", "/channels/{channel}", None),
    ("POST", "/runs/{run}/finish", {"session": "{session}"}),
    ("DELETE", "/runs/{run}", None),
    ("POST", "/login", {"token": "gs_guess"}),
    ("POST", "/logout", None),
]


def is_empty(answer: httpx2.Response) -> bool:
    """Whether an answer is a list of ours without an entry."""
    found = answer.json() if answer.headers["content-type"] == "application/json" else None
    return isinstance(found, dict) and found.get("items") == []


def test_every_call_answers_as_the_document_says():
    with TestClient(app, base_url="http://127.0.0.1:7117") as client:
        places = real_run(Caller(client))
        seen = set()

        def call(method: str, path: str, body: dict[str, Any] | None = None, **params: str) -> httpx2.Response:
            full = path if path in ("/login", "/logout") else API + path
            given = (
                None if body is None else {name: places.get(str(value)[1:-1], value) for name, value in body.items()}
            )
            asked = {name: value.format(**places) for name, value in params.items()}
            answer = client.request(method, full.format(**places), json=given, params=asked or None)
            schema[full][method].validate_response(answer)
            seen.add((full, method.lower()))
            return answer

        for method, path, body in CHANGES:
            answer = call(method, path, body)
            assert answer.status_code in (200, 201), answer.text
            if path == "/runs":
                places["another"] = answer.json()["id"]
            if path in ("/tokens", "/channels"):
                places[path[1:-1]] = answer.json()["id"]
        for path, methods in schema.raw_schema["paths"].items():
            if "get" in methods and not path.endswith("/live"):
                answer = call("GET", path.removeprefix(API), **GETS.get(path.removeprefix(API), {}))
                assert answer.status_code == 200, answer.text
                assert not is_empty(answer) or path.endswith(("/deliveries", "/retention", "/suggestions")), path
        for method, path, body in ENDINGS:
            assert call(method, path, body).status_code in (200, 204, 401 if path == "/login" else 502), path
        documented = {(path, method) for path, methods in schema.raw_schema["paths"].items() for method in methods}
        assert documented - seen == {(f"{API}/live", "get")}
