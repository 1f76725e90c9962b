"""Production as plain processes: two API processes, two workers, beat, Redis, PostgreSQL, and a real training."""

from __future__ import annotations

import hashlib
import hmac
import importlib.util
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from databases import postgres
from playwright.sync_api import expect
from system.browser import PATIENCE, chromium_page, expect_curve, expect_heatmap
from system.services import (
    BIN,
    Process,
    Rest,
    Webhook,
    clean_environment,
    eventually,
    free_port,
    redis,
    running,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None, reason="torch is not installed: nothing to train with"
    ),
]

SECRET = "a secret of the channel"
STEPS, FAULT_AT = 400, 250


@dataclass
class Production:
    """The running set-up."""

    address: str
    rest: Rest
    webhook: Webhook
    environment: dict[str, str]
    workers: list[Process] = field(default_factory=list)


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """Everything that docker-compose.yml starts, started here."""
    folder = tmp_path_factory.mktemp("production")
    with ExitStack() as stack:
        database, broker = stack.enter_context(postgres()), stack.enter_context(redis(folder))
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        environment = clean_environment(
            GRADSPECTRA_DATABASE_URL=database,
            GRADSPECTRA_REDIS_URL=broker,
            GRADSPECTRA_ALERT_ALLOW_HOSTS="127.0.0.1",
            GRADSPECTRA_DATA=str(folder / "data"),
            GRADSPECTRA_SPOOL=str(folder / "spool"),
            GRADSPECTRA_SERVER=address,
        )

        def start(name: str, *command: str) -> Process:
            return stack.enter_context(
                running([str(BIN / command[0]), *command[1:]], folder / f"{name}.log", environment)
            )

        start("api", "uvicorn", "gradspectra_backend.asgi:app", "--workers", "2", "--port", str(port))
        rest = Rest(address)
        eventually(rest.up, 60, "the API answers")
        webhook = Webhook()
        stack.callback(webhook.close)
        rest.send("POST", "/channels", {"name": "test", "url": webhook.url, "secret": SECRET})
        made = Production(address, rest, webhook, environment)
        made.workers = [start(f"worker{n}", "gradspectra", "worker", "--concurrency", "1") for n in (1, 2)]
        start(
            "beat",
            "celery",
            "-A",
            "gradspectra_worker.app",
            "beat",
            "--schedule",
            str(folder / "beat"),
            "--pidfile",
            "",
        )
        eventually(rest.ready, 60, "database, Redis and workers are ready")
        yield made


@pytest.fixture(scope="module")
def trained(production: Production, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of a small GPT with a fault, trained while one of the workers is killed; all of it derived."""
    log = tmp_path_factory.mktemp("job") / "job.log"
    command = [sys.executable, str(Path(__file__).with_name("job.py")), str(STEPS), str(FAULT_AT)]
    rest = production.rest
    with running(command, log, production.environment) as job:
        eventually(
            lambda: any((run["last_step"] or 0) > 60 for run in rest.get("/runs")["items"]), 120, "60 steps are in"
        )
        production.workers[0].stop(signal.SIGKILL)
        assert job.child.wait(180) == 0, job.output()
    run = rest.get("/runs")["items"][0]
    derived = eventually(
        lambda: (now := rest.get(f"/runs/{run['id']}"))["derived_step"] == STEPS and now, 60, "everything is derived"
    )
    assert isinstance(derived, dict)
    return derived


def test_the_run_is_finished_and_complete(production: Production, trained: dict[str, Any]) -> None:
    assert (trained["name"], trained["state"], trained["last_step"]) == ("production", "finished", STEPS)
    assert production.rest.get(f"/runs/{trained['id']}/gaps")["items"] == []
    series = production.rest.get(f"/runs/{trained['id']}/series", names="loss,tokens", columns=STEPS)
    assert series["x"] == list(range(1, STEPS + 1))
    assert series["series"]["loss"]["nonfinite"] == [0] * STEPS
    assert series["series"]["tokens"]["last"] == [2 * 8 * 32] * STEPS
    losses = series["series"]["loss"]["last"]
    assert losses[0] == pytest.approx(5.55, abs=0.2)  # ln 256
    assert sum(losses[FAULT_AT - 20 : FAULT_AT - 1]) / 19 < 3.2


def test_layer_metrics_are_derived_by_the_workers(production: Production, trained: dict[str, Any]) -> None:
    layers = {layer["name"]: layer for layer in production.rest.get(f"/runs/{trained['id']}/layers")["items"]}
    assert layers["layers.0.attn.qkv.weight[q]"]["role"] == "q"
    assert layers["layers.1.down_proj.weight"]["depth"] == 1
    for metric, low, high in (("effective_rank", 1.0, 64.0), ("stable_rank", 1.0, 64.0), ("grad_norm", 0.0, 100.0)):
        answer = production.rest.get(f"/runs/{trained['id']}/layers/{metric}")
        values = [value for row in answer["mean"] for value in row if isinstance(value, float)]
        assert len(values) >= 15 * STEPS / 20 / 2, metric
        assert low <= min(values) <= max(values) <= high, metric


def test_noise_and_suggestions_come_out(production: Production, trained: dict[str, Any]) -> None:
    noise = production.rest.values(trained["id"], "noise_scale")
    assert noise
    suggestions = production.rest.get(f"/runs/{trained['id']}/suggestions")["items"]
    multipliers = [s for s in suggestions if s["quantity"] == "learning_rate_multiplier"]
    assert len(multipliers) == len(production.rest.get(f"/runs/{trained['id']}/layers")["items"])
    for suggestion in multipliers:
        if suggestion["enough_evidence"]:
            assert 0.25 <= suggestion["low"] <= suggestion["value"] <= suggestion["high"] <= 4.0
            assert suggestion["confidence"] in ("low", "medium", "high")
        else:
            assert suggestion["value"] is None


def test_the_fault_is_one_incident_with_an_alert_opened_once(production: Production, trained: dict[str, Any]) -> None:
    alerts = production.rest.get(f"/runs/{trained['id']}/alerts")["items"]
    spikes = [a for a in alerts if a["rule"] == "gradient_spike" and FAULT_AT <= a["opened_step"] <= FAULT_AT + 6]
    assert len(spikes) == 1
    assert spikes[0]["severity"] in ("warning", "critical")
    assert spikes[0]["value"] > spikes[0]["threshold"]
    assert "gradient norm" in spikes[0]["message"]


def test_the_alert_reaches_the_webhook_signed(production: Production, trained: dict[str, Any]) -> None:
    hook = production.webhook
    eventually(
        lambda: any(body["alert"]["rule"] == "gradient_spike" for body in hook.bodies()), 30, "the alert is delivered"
    )
    assert {body["alert"]["run"] for body in hook.bodies()} == {trained["id"]}
    for headers, body in hook.calls:
        expected = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        assert headers["X-Gradspectra-Signature"] == expected
    deliveries = [headers["X-Gradspectra-Delivery"] for headers, _ in hook.calls]
    assert len(deliveries) == len(set(deliveries))


def test_both_api_processes_tell_the_same(production: Production, trained: dict[str, Any]) -> None:
    answers = [Rest(production.address).get(f"/runs/{trained['id']}") for _ in range(8)]
    assert all(answer == answers[0] for answer in answers)


def test_an_acknowledgement_is_kept(production: Production, trained: dict[str, Any]) -> None:
    alerts = production.rest.get(f"/runs/{trained['id']}/alerts")["items"]
    alert = next(alert for alert in alerts if alert["rule"] == "gradient_spike")
    changed = production.rest.send("PATCH", f"/alerts/{alert['id']}", {"note": "the rate was wrong"})
    assert changed["note"] == "the rate was wrong"
    assert production.rest.get(f"/alerts/{alert['id']}")["note"] == "the rate was wrong"


def test_the_page_draws_the_run(production: Production, trained: dict[str, Any]) -> None:
    place = f"{production.address}/runs/{trained['id']}"
    with chromium_page(f"{place}/overview") as page:
        for figure in ("loss", "grad_norm", "noise_scale", "learning_rate"):
            expect_curve(page, figure)
        page.goto(f"{place}/layers")
        expect_heatmap(page, "layers")
        page.goto(f"{place}/alerts")
        expect(page.locator("[data-alert-detail]")).to_contain_text("What to do", timeout=PATIENCE)
