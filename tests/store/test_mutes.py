"""Muted rules: their alerts are kept and marked, count for nothing, and are delivered to nobody."""

from __future__ import annotations

from typing import Any

import pytest
from gradspectra_core.alerts import Finding
from gradspectra_core.catalogue import RULES
from gradspectra_store import Store
from gradspectra_store.alerts import apply_findings, list_alerts, patch_alert
from gradspectra_store.deliveries import add_channel, due_deliveries, list_deliveries
from gradspectra_store.errors import BadRequest, UnknownRun
from gradspectra_store.mutes import list_mutes, mute_rule, unmute_rule
from store.batches import started
from store.test_runs_of_store import shown


def find(store: Store, run: str, *findings: Finding) -> list[dict[str, Any]]:
    with store.write() as conn:
        return apply_findings(conn, run, 1, [(one, 5000.0 + one.step) for one in findings], RULES)


def opened(rule: str, step: int, severity: str = "warning") -> Finding:
    return Finding(rule, "open", severity, step, step)


def standing(store: Store, run: str) -> tuple[str, int]:
    found = shown(store, run)
    return found["health"], found["open_alerts"]


def test_alerts_of_a_muted_rule_are_kept_marked_and_not_delivered(store: Store) -> None:
    run, other = started(store).run, started(store).run
    with store.write() as conn:
        add_channel(conn, url="https://a.example/x", now=1.0)
        assert mute_rule(conn, run, "loss_spike", 2000.0) == (
            {"run": run, "rule": "loss_spike", "created_at": 2000.0},
            [],
        )
        assert mute_rule(conn, run, "loss_spike", 3000.0)[0]["created_at"] == 2000.0
    changed = find(store, run, opened("loss_spike", 10), opened("gradient_spike", 12))
    assert [(alert["rule"], alert["muted"]) for alert in changed] == [("loss_spike", True), ("gradient_spike", False)]
    find(store, run, Finding("loss_spike", "update", "critical", 10, 13))
    find(store, other, opened("loss_spike", 10))
    assert (standing(store, run), standing(store, other)) == (("warning", 1), ("warning", 1))
    with store.write() as conn:
        sent = [(due["alert"]["run"], due["alert"]["rule"]) for due in due_deliveries(conn, 9000.0)]
        assert sent == [(run, "gradient_spike"), (other, "loss_spike")]
        assert [alert["muted"] for alert in list_alerts(conn, run=run, state="open")[0]] == [False, True]
        patch_alert(conn, changed[1]["id"], "closed", None, 9000.0)
    assert standing(store, run) == ("ok", 0)


def test_muting_stops_what_is_due_and_unmuting_sends_only_what_comes(store: Store) -> None:
    run = started(store).run
    with store.write() as conn:
        add_channel(conn, url="https://a.example/x", now=1.0)
    (alert,) = find(store, run, opened("loss_spike", 10))
    with store.write() as conn:
        _, changed = mute_rule(conn, run, "loss_spike", 6000.0)
        assert [(one["id"], one["muted"]) for one in changed] == [(alert["id"], True)]
        assert due_deliveries(conn, 9000.0) == []
        (logged,) = list_deliveries(conn)[0]
        assert (logged["state"], logged["error"]) == ("failed", "the rule was muted for this run")
    assert standing(store, run) == ("ok", 0)
    with store.write() as conn:
        assert list_mutes(conn, run) == list_mutes(conn) == [{"run": run, "rule": "loss_spike", "created_at": 6000.0}]
        assert [(one["id"], one["muted"]) for one in unmute_rule(conn, run, "loss_spike")] == [(alert["id"], False)]
        assert (unmute_rule(conn, run, "loss_spike"), list_mutes(conn), due_deliveries(conn, 9000.0)) == ([], [], [])
    assert standing(store, run) == ("warning", 1)
    find(store, run, Finding("loss_spike", "update", "critical", 10, 13))
    with store.write() as conn:
        assert [due["severity"] for due in due_deliveries(conn, 9000.0)] == ["critical"]


def test_a_rule_or_run_that_is_not_there_cannot_be_muted(store: Store) -> None:
    run = started(store).run
    for change in (lambda conn, *key: mute_rule(conn, *key, 1.0), unmute_rule):
        with store.write() as conn, pytest.raises(BadRequest, match=r"rule: must be one of nonfinite, .*, got 'los'"):
            change(conn, run, "los")
        with store.write() as conn, pytest.raises(UnknownRun):
            change(conn, "nowhere", "loss_spike")
