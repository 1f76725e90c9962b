import math
from typing import Any

import numpy as np
from agent.records import layer_record
from gradspectra.record import StepRecord
from gradspectra.rules import LocalRules
from gradspectra_core.alerts import alert_id

MEMBERS = {
    "id", "run", "attempt", "incident", "rule", "severity", "state", "layers", "first_layer", "opened_step",
    "last_step", "closed_step", "opened_at", "value", "threshold", "message", "meaning", "remedy", "evidence",
}  # fmt: skip


def observed(rules: LocalRules, losses: list[float], first: int = 1) -> list[dict[str, Any]]:
    alerts = []
    for step, loss in enumerate(losses, first):
        alerts += rules.observe(StepRecord(step, 1000.0 + step, {"loss": loss}))
    return alerts


def test_a_loss_that_is_not_a_number_opens_an_alert_at_its_step() -> None:
    rules = LocalRules("abc", 2)
    (alert,) = observed(rules, [1.0, 0.9, math.nan])
    assert set(alert) == MEMBERS
    assert (alert["rule"], alert["severity"], alert["state"]) == ("nonfinite", "critical", "open")
    assert (alert["opened_step"], alert["opened_at"], alert["closed_step"]) == (3, 1003.0, None)
    assert alert["id"] == alert_id("abc", 2, "nonfinite", 3, None), "the server gives it the same identity"
    assert "checkpoint" in alert["remedy"]


def test_an_alert_closes_with_the_time_it_opened_at() -> None:
    noise = [1.0 + 0.01 * math.sin(step) for step in range(80)]
    alerts = observed(LocalRules("abc"), [*noise, 9.0, *noise])
    spikes = [alert for alert in alerts if alert["rule"] == "loss_spike"]
    assert (spikes[0]["state"], spikes[0]["opened_step"]) == ("open", 81)
    assert spikes[-1]["state"] == "closed"
    assert spikes[-1]["closed_step"] == spikes[-1]["last_step"] > 81
    assert {(alert["id"], alert["opened_at"]) for alert in spikes} == {(spikes[0]["id"], 1081.0)}


def test_a_layer_with_nonfinite_gradients_is_named() -> None:
    record = layer_record(1)
    assert record.counts_values is not None
    record.counts_values[0] = [0, 4]
    (alert,) = LocalRules().observe(record)
    assert (alert["rule"], alert["layers"], alert["first_layer"]) == ("nonfinite", ["b.weight"], "b.weight")


def test_statistics_without_counts_and_counts_without_statistics_are_judged() -> None:
    floats, counts = layer_record(1), layer_record(2)
    floats.count_statistics, floats.counts_values = (), None
    counts.statistics, counts.values, counts.present = (), None, None
    counts.counts_values = np.array([[1, 0]])
    rules = LocalRules()
    assert rules.observe(floats) == []
    assert [alert["layers"] for alert in rules.observe(counts)] == [["a.weight"]]


def test_the_run_is_named_once_the_server_has_done_so() -> None:
    rules = LocalRules("local")
    rules.name("given", 3)
    (alert,) = observed(rules, [math.inf])
    assert (alert["run"], alert["attempt"]) == ("given", 3)
