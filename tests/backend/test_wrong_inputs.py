"""Whatever is wrong with a call, the answer is a sentence of ours that names the field: never the framework's words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx2
import pytest
from backend.callers import API, Caller
from backend.servers import serving
from backend.test_openapi import real_run
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.settings import Settings, load_settings

QUERY = ("", "x", "-1", "1.5", "9" * 20, "NaN", "4-", "é" * 9000)
BODY = (None, "", "x", -1, 1.5, 10**20, [], {}, [None], True, "x" * 300_000, "\ud800")
UNREADABLE = (b"", b"null", b"[]", b"{", b'{"a":1', b"\xff", b"[" * 100_000, b'{"a":' + b"9" * 5000 + b"}")
OTHERS = re.compile(
    r"Input should|(String|List|Value) (should|error)|Field required|Extra inputs|unable to|parsing|Not Allowed"
    r"|argument|\^|NoneType|None\b|True\b|False\b|JSON decode|<class|dictionary|Traceback"
)
"""How the framework, Python and regular expressions speak."""

Wrong = tuple[str, str, dict[str, Any]]
"""Method, address and what is sent."""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Caller, dict[str, str], dict[str, Any]]]:
    app = create_app(load_settings(data=tmp_path_factory.mktemp("data")))
    with TestClient(app, base_url="http://127.0.0.1:7117", raise_server_exceptions=False) as client:
        caller = Caller(client)
        places = real_run(caller) | {"token": "x", "channel": "x"}
        yield caller, places, client.get("/openapi.json").json()


def in_addresses(path: str, operation: dict[str, Any], places: dict[str, str]) -> Iterator[str]:
    """Addresses of a call with one parameter wrong."""
    needed = {"layer": places["layer"]} if path.endswith("/spectra") else {}
    names = ("layers", "loss", "spectrum") if path.endswith("/figures/{name}") else (places["name"],)
    for parameter in operation.get("parameters", ()):
        if parameter["in"] == "path":
            wrong = ("x", "é", "x" * 1000, "\x00", "a b")
            yield from (path.format(**(places | {parameter["name"]: quote(value)})) for value in wrong)
        if parameter["in"] == "query":
            for name in names:
                full = path.format(**(places | {"name": name}))
                yield from (f"{full}?{urlencode(needed | {parameter['name']: value})}" for value in QUERY)


def in_bodies(path: str, operation: dict[str, Any], schemas: dict[str, Any], session: str) -> Iterator[bytes]:
    """JSON bodies of a call with one member wrong."""
    schema = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    members = schemas[schema]["properties"]
    needed = {"session": session, "project": "p", "name": "n", "url": "http://127.0.0.1:9", "token": "gs_guess"}
    whole = {name: value for name, value in needed.items() if name in members and path != f"{API}/runs/{{run}}"}
    for name in [*members, "none_such"]:
        yield from (json.dumps(whole | {name: value}).encode() for value in BODY)
    yield from UNREADABLE


def wrong_calls(places: dict[str, str], document: dict[str, Any]) -> Iterator[Wrong]:
    headers = {"Content-Type": "application/json"}
    for path, methods in document["paths"].items():
        if path.endswith("/live"):
            continue
        for method, operation in methods.items():
            if method == "delete":
                continue
            for address in in_addresses(path, operation, places):
                yield method, address, {"json": {}} if "requestBody" in operation else {}
            if "requestBody" in operation and not path.endswith("/records"):
                full = path.format(**places)
                for body in in_bodies(path, operation, document["components"]["schemas"], places["session"]):
                    yield method, full, {"content": body, "headers": headers}
                yield method, full, {"content": b"{}", "headers": {"Content-Type": "text/plain"}}


def test_every_wrong_input_is_answered_by_a_sentence_that_names_the_field(asked):
    caller, places, document = asked
    refused = 0
    for method, address, sent in wrong_calls(places, document):
        answer = caller.client.request(method, address, **sent)
        if answer.status_code < 300:
            continue
        told = f"{method} {address[:100]} {str(sent)[:100]}: {answer.text[:300]}"
        problem = answer.json()
        refused += 1
        assert answer.status_code < 500, told
        assert not OTHERS.search(problem["detail"]), told
        assert problem["remedy"], told
        if answer.status_code == 422:
            assert problem["field"], told
            assert problem["detail"].startswith(f"{problem['field']}: "), told
            assert not any(OTHERS.search(entry["detail"]) for entry in problem.get("errors", ())), told
    assert refused > 1000


def test_a_parameter_that_a_call_does_not_know_is_refused_with_the_nearest_that_it_does(asked):
    caller, places, document = asked
    refused, open_to_all = 0, {f"{API}/health", f"{API}/ready", f"{API}/me", "/login", "/logout"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path in open_to_all:
                continue
            taken = {one["name"] for one in operation.get("parameters", ()) if one["in"] == "query"}
            for name in {"none_such", *(name + "s" for name in taken)} - taken:
                answer = caller.client.request(method, f"{path.format(**places)}?{name}=5")
                problem = answer.json()
                assert (answer.status_code, problem["field"]) == (422, name), (method, path, problem)
                near = taken & {name[:-1]}
                assert problem["detail"].startswith(f"{name}: is not known here"), problem
                assert not near or problem["detail"].endswith(f"; did you mean {near.pop()}?"), problem
                assert all(one in problem["remedy"] for one in taken), problem
                refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("path", "params", "field", "detail"),
    [
        ("/series", {"columns": "0"}, "columns", "must be at least 1, got '0'"),
        ("/series", {"columns": "many"}, "columns", "must be a whole number, got 'many'"),
        ("/series", {"axis": "hour"}, "axis", "must be 'step', 'tokens', 'time' or 'fraction', got 'hour'"),
        ("/series", {"names": "a" * 20_001}, "names", "must have at most 20000 characters, got 20001"),
        ("/series", {"colums": "5"}, "colums", "is not known here; did you mean columns?"),
        ("/series", {"b" * 300: ""}, "b" * 200, "is not known here"),
        ("/figures/layers", {"stat": "grad_norm"}, "stat", "is not known here; did you mean statistic?"),
        ("/series", {"": "5"}, "query", "is not known here"),
        ("/spectra", {"layr": "x"}, "layr", "is not known here; did you mean layer?"),
        ("/spectra", {}, "layer", "is missing"),
        ("/alerts", {"since": "nan"}, "since", "must be at most 100000000000, got 'nan'"),
        ("/figures/layers", {"smooth": "2"}, "smooth", "the figure 'layers' does not take it"),
        ("/figures/loss", {"step": "2"}, "step", "the figure 'loss' does not take it"),
        ("/layers/grad_norm", {"depth": "2-1"}, "depth", "a range must not go backwards, got '2-1'"),
        (
            "/figures/layers",
            {"depth": "1;2"},
            "depth",
            "must be depths and ranges of them, as 0,4-7 (-1 is outside of the blocks), got '1;2'",
        ),
    ],
)
def test_a_wrong_parameter_is_told_with_what_it_must_be(asked, path, params, field, detail):
    caller, places, _ = asked
    answer = caller.client.get(f"{API}/runs/{places['run']}{path}", params=params)
    found = answer.json()
    assert (answer.status_code, found["field"], found["detail"]) == (422, field, f"{field}: {detail}")


@pytest.mark.parametrize(
    ("sent", "detail"),
    [
        ({"project": "p", "rank": 1.5}, "rank: must be a whole number, got 1.5"),
        ({"project": "p", "config": [1, 2]}, "config: must be an object, got a list"),
        ({"project": None}, "project: must be text, got null"),
        ([1], "body: must be an object, got a list"),
    ],
)
def test_a_wrong_member_is_told_with_what_it_must_be(asked, sent, detail):
    answer = asked[0].client.post(f"{API}/runs", json=sent)
    assert (answer.status_code, answer.json()["detail"]) == (422, detail)


def test_a_body_that_is_no_json_is_told_with_the_place(asked):
    client = asked[0].client
    headers = {"Content-Type": "application/json"}
    broken = client.post(f"{API}/runs", content=b'{"project": }', headers=headers)
    assert (broken.status_code, broken.json()["detail"]) == (
        400,
        "the body is not JSON: Expecting value, at character 12",
    )


def test_a_secret_is_not_said_again(asked):
    for path, sent in (("/login", {"token": 987654321}), (f"{API}/channels", {"url": "x", "secret": 987654321})):
        answer = asked[0].client.post(path, json=sent)
        assert answer.status_code == 422
        assert "987654321" not in answer.text


def test_a_method_that_an_address_does_not_take_is_told_with_those_that_it_does(asked):
    answer = asked[0].client.put(f"{API}/runs")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
    assert answer.json()["detail"] == "PUT is not offered at /api/v1/runs, but GET, HEAD, POST"


def test_depths_may_have_spaces_between_and_none_are_all(settings: Settings):
    with TestClient(create_app(settings), base_url="http://127.0.0.1:7117") as client:
        caller = Caller(client)
        run = real_run(caller)["run"]
        everything = caller.get(f"/runs/{run}/layers/grad_norm")
        assert caller.get(f"/runs/{run}/layers/grad_norm", depth="") == everything
        assert caller.get(f"/runs/{run}/layers/grad_norm", depth="0, 1-900000") == everything


def test_the_longest_list_of_layers_that_is_documented_comes_to_the_call(tmp_path: Path):
    with serving(tmp_path) as server, httpx2.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        run = Caller(client).start()["id"]
        address = f"{API}/runs/{run}/layers/grad_norm"
        longest = client.get("/openapi.json").json()["paths"][f"{API}/runs/{{run}}/layers/{{statistic}}"]["get"]
        (limit,) = (one["schema"] for one in longest["parameters"] if one["name"] == "layers")
        length = next(one["maxLength"] for one in limit["anyOf"] if "maxLength" in one)
        answer = client.get(address, params={"layers": "a" * length})
        assert (answer.status_code, answer.json()["type"]) == (404, "/problems/unknown-layer")
        answer = client.get(address, params={"layers": "a" * (length + 1)})
        assert answer.json()["detail"] == f"layers: must have at most {length} characters, got {length + 1}"
