"""Every call is tried with made-up input: no failure, no answer that the OpenAPI document does not tell of."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from backend.callers import API, Caller, batch, layer_block, spectrum_block, table
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.settings import load_settings
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


def test_answers_of_a_real_run_are_as_the_document_says():
    with TestClient(app, base_url="http://127.0.0.1:7117") as client:
        caller = Caller(client)
        run = caller.start(config={"lr": 0.1}, tags=["a"])
        of = table()
        whole = batch(
            run["session"],
            1,
            [1, 2],
            layer_table=of,
            layers=layer_block(of, [1, 2], grad_sq=[[1.0, float("nan")], [2.0, float("inf")]]),
            spectra=spectrum_block(of, 1, 0, [3.0, 1.0]),
            loss=[float("nan"), None],
        )
        caller.must_send(run["id"], whole)
        caller.derived(run["id"], 2)
        calls = {
            "/runs": {},
            "/projects": {},
            "/runs/{run}": {},
            "/runs/{run}/layers": {},
            "/runs/{run}/series": {},
            "/runs/{run}/layers/{statistic}": {"statistic": "grad_norm"},
            "/runs/{run}/spectra": {"layer": of.names[0]},
            "/runs/{run}/suggestions": {},
            "/runs/{run}/alerts": {},
            "/runs/{run}/incidents": {},
            "/runs/{run}/gaps": {},
            "/runs/{run}/attempts": {},
            "/runs/{run}/figures/{name}": {"name": "loss"},
            "/alerts": {},
        }
        for path, values in calls.items():
            address = API + path.format(run=run["id"], **{"statistic": "", "name": ""} | values)
            answer = client.get(address, params={"layer": values["layer"]} if "layer" in values else None)
            assert answer.status_code == 200, answer.text
            schema[API + path]["GET"].validate_response(answer)
        assert caller.get(f"/runs/{run['id']}/alerts")["items"]
