"""Alerts through the door: listed, grouped, acknowledged, delivered."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from backend.callers import API, Caller, batch
from fastapi.testclient import TestClient
from gradspectra_backend.app import create_app
from gradspectra_backend.routes.alerts import incidents_of
from gradspectra_core.alerts import Finding
from gradspectra_core.catalogue import RULES
from gradspectra_core.detectors import ALL_RULES, LOCAL_RULES
from gradspectra_store.alerts import apply_findings

NAN = float("nan")


class Receiver(HTTPServer):
    """A webhook on this machine. got: headers and body of each message; status: what it answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[Any, bytes]] = []
        self.status = 204
        self.url = f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        self.server.got.append((self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture
def delivering(settings) -> Iterator[Caller]:
    """A server that may send to this machine."""
    allowed = settings.model_copy(update={"alert_allow_hosts": ("127.0.0.1",)})
    with TestClient(create_app(allowed), base_url="http://127.0.0.1:7117", raise_server_exceptions=False) as client:
        yield Caller(client)


def failed_run(caller: Caller) -> dict[str, Any]:
    run = caller.start()
    caller.must_send(run["id"], batch(run["session"], 1, [1, 2, 3], loss=[1.0, NAN, NAN]))
    caller.derived(run["id"], 3)
    return run


def test_an_alert_is_listed_with_its_run_and_over_all_runs(anywhere: Caller):
    run = failed_run(anywhere)
    (alert,) = anywhere.get(f"/runs/{run['id']}/alerts")["items"]
    assert (alert["rule"], alert["severity"], alert["state"], alert["opened_step"]) == (
        "nonfinite",
        "critical",
        "open",
        2,
    )
    assert alert["run"] == run["id"]
    assert alert["remedy"]
    assert anywhere.get("/alerts", state="open")["items"] == [alert]
    assert anywhere.get("/alerts", state="closed")["items"] == []
    assert anywhere.get("/alerts", since=alert["opened_at"] + 1)["items"] == []
    assert anywhere.get(f"/alerts/{alert['id']}") == alert
    shown = anywhere.get(f"/runs/{run['id']}")
    assert (shown["health"], shown["open_alerts"]) == ("critical", 1)


def test_an_alert_is_acknowledged_noted_and_closed(anywhere: Caller):
    run = failed_run(anywhere)
    identity = anywhere.get("/alerts")["items"][0]["id"]
    path = f"{API}/alerts/{identity}"
    seen = anywhere.client.patch(path, json={"state": "acknowledged", "note": "looking <b>now</b>"}).json()
    assert (seen["state"], seen["note"]) == ("acknowledged", "looking <b>now</b>")
    closed = anywhere.client.patch(path, json={"state": "closed"}).json()
    assert (closed["state"], closed["note"]) == ("closed", "looking <b>now</b>")
    assert anywhere.get(f"/runs/{run['id']}")["open_alerts"] == 0
    for change in ({"state": "open"}, {"severity": "info"}, {"note": 5}):
        assert anywhere.client.patch(path, json=change).status_code == 422
    gone = anywhere.client.patch(f"{API}/alerts/nothing", json={"note": ""})
    assert (gone.status_code, gone.json()["type"]) == (404, "/problems/unknown-alert")


def test_incidents_group_what_opened_together():
    def alert(
        identity: str, incident: str, step: int, state: str = "closed", severity: str = "warning"
    ) -> dict[str, Any]:
        common = {"run": "r", "attempt": 1, "opened_at": float(step), "last_step": step + 5, "rule": f"rule-{identity}"}
        closed = step + 5 if state == "closed" else None
        return common | {
            "id": identity,
            "incident": incident,
            "opened_step": step,
            "closed_step": closed,
            "state": state,
            "severity": severity,
        }

    items = [alert("c", "c", 90), alert("a", "a", 10), alert("b", "a", 12, "open", "critical")]
    last, first = incidents_of(items)
    assert (last["id"], last["state"], last["closed_step"]) == ("c", "closed", 95)
    assert (first["id"], first["alerts"], first["rules"]) == ("a", ["a", "b"], ["rule-a", "rule-b"])
    assert (first["severity"], first["state"], first["opened_step"], first["closed_step"]) == (
        "critical",
        "open",
        10,
        None,
    )


def test_incidents_come_in_pages_however_many_there_are(caller: Caller):
    run = caller.start()
    store = caller.client.app.state.context.store
    rules = ("loss_spike", "gradient_spike")
    findings = [
        (Finding(rule, change, "warning", opened, step), float(step))
        for first in range(10, 6010, 10)
        for rule, change, opened, step in (
            *((rule, "open", first + at, first + at) for at, rule in enumerate(rules)),
            *((rule, "close", first + at, first + 5) for at, rule in enumerate(rules)),
        )
    ]
    with store.write() as conn:
        apply_findings(conn, run["id"], 1, findings, RULES)
    found, cursor = [], None
    while cursor is not None or not found:
        page = caller.get(f"/runs/{run['id']}/incidents", limit=500, **({"cursor": cursor} if cursor else {}))
        found, cursor = found + page["items"], page["next"]
    assert [incident["opened_step"] for incident in found] == list(range(6000, 0, -10))
    assert all(incident["rules"] == list(rules) and incident["state"] == "closed" for incident in found)
    assert len(caller.get(f"/runs/{run['id']}/incidents")["items"]) == 100


def test_an_alert_arrives_at_the_webhook_signed_and_is_logged(delivering: Caller, receiver: Receiver):
    channel = {"url": receiver.url, "name": "ops", "secret": "s3cret", "min_severity": "warning"}
    added = delivering.client.post(f"{API}/channels", json=channel)
    assert added.status_code == 201
    assert "s3cret" not in added.text + delivering.client.get(f"{API}/channels").text
    assert added.json()["signed"] is True
    run = failed_run(delivering)
    deadline = time.monotonic() + 120
    while not receiver.got and time.monotonic() < deadline:
        time.sleep(0.01)
    ((headers, body),) = receiver.got
    assert headers["X-Gradspectra-Signature"] == "sha256=" + hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    assert json.loads(body)["alert"]["run"] == run["id"]
    while (entry := delivering.get("/deliveries")["items"][0])["state"] != "sent" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (entry["state"], entry["status"], entry["tries"]) == ("sent", 204, 1)


def test_a_muted_rule_is_told_to_nobody(delivering: Caller, receiver: Receiver):
    delivering.client.post(f"{API}/channels", json={"url": receiver.url})
    run = delivering.start()
    path = f"{API}/mutes/{run['id']}/nonfinite"
    muted = delivering.client.put(path)
    assert (muted.status_code, muted.json()) == (200, delivering.get("/mutes")["items"][0])
    delivering.must_send(run["id"], batch(run["session"], 1, [1, 2, 3], loss=[1.0, NAN, NAN]))
    assert delivering.derived(run["id"], 3)["health"] == "ok"
    (alert,) = delivering.get(f"/runs/{run['id']}/alerts")["items"]
    assert (alert["rule"], alert["state"], alert["muted"]) == ("nonfinite", "open", True)
    beat = {"session": run["session"]}
    assert delivering.client.post(f"{API}/runs/{run['id']}/heartbeat", json=beat).json()["alerts"] == []
    assert delivering.client.delete(path).status_code == 204
    assert (delivering.get("/mutes", run=run["id"])["items"], receiver.got) == ([], [])
    assert delivering.get(f"/runs/{run['id']}")["health"] == "critical"
    (told,) = delivering.client.post(f"{API}/runs/{run['id']}/heartbeat", json=beat).json()["alerts"]
    assert (told["id"], told["muted"]) == (alert["id"], False)
    assert delivering.get("/deliveries")["items"] == []
    refused = delivering.client.put(f"{API}/mutes/{run['id']}/los")
    assert (refused.status_code, refused.json()["field"]) == (422, "rule")
    for call in (delivering.client.put, delivering.client.delete):
        assert call(f"{API}/mutes/nowhere/nonfinite").json()["type"] == "/problems/unknown-run"
    assert delivering.client.get(f"{API}/mutes", params={"run": "nowhere"}).status_code == 404


def test_a_test_of_a_channel_is_sent_at_once_and_its_failure_is_said(delivering: Caller, receiver: Receiver):
    identity = delivering.client.post(f"{API}/channels", json={"url": receiver.url}).json()["id"]
    path = f"{API}/channels/{identity}/test"
    assert delivering.client.post(path).json() == {"ok": True, "status": 204}
    assert json.loads(receiver.got[0][1])["alert"]["rule"] == "test"
    receiver.status = 500
    failed = delivering.client.post(path)
    assert (failed.status_code, failed.json()["type"], failed.json()["answered"]) == (
        502,
        "/problems/undeliverable",
        500,
    )
    assert delivering.client.delete(f"{API}/channels/{identity}").status_code == 204
    for call in (delivering.client.delete(f"{API}/channels/{identity}"), delivering.client.post(path)):
        assert (call.status_code, call.json()["type"]) == (404, "/problems/unknown-channel")


def test_a_webhook_inside_the_network_is_not_reached_unless_the_operator_allows_it(caller: Caller, receiver: Receiver):
    identity = caller.client.post(f"{API}/channels", json={"url": receiver.url}).json()["id"]
    failed = caller.client.post(f"{API}/channels/{identity}/test")
    assert failed.status_code == 502
    assert "GRADSPECTRA_ALERT_ALLOW_HOSTS" in failed.json()["detail"]
    assert receiver.got == []


@pytest.mark.parametrize(
    ("change", "field"),
    [({"url": "file:///etc/passwd"}, "url"), ({"url": "http://"}, "url"), ({"min_severity": "loud"}, "min_severity")],
)
def test_a_channel_that_cannot_be_is_refused(caller: Caller, change, field):
    answer = caller.client.post(f"{API}/channels", json={"url": "https://example.com/"} | change)
    assert (answer.status_code, answer.json()["field"]) == (422, field)


def test_the_rules_say_what_they_read_and_compare_with(shared_caller: Caller):
    found = {rule["name"]: rule for rule in shared_caller.get("/rules")["items"]}
    assert set(found) == set(ALL_RULES)
    assert {name for name, rule in found.items() if rule["in_job"]} == set(LOCAL_RULES)
    text = RULES["gradient_spike"]
    assert found["gradient_spike"] == {
        "name": "gradient_spike",
        "severity": "warning",
        "meaning": text.meaning,
        "remedy": text.remedy,
        "source": text.source,
        "needs": ["grad_norm", "grad_sq"],
        "uses": ["loss", "skipped"],
        "thresholds": {"z": 6.0, "ratio": 2.0, "critical_ratio": 5.0, "joint_ratio": 3.0, "loss_z": 3.0},
        "in_job": True,
    }
