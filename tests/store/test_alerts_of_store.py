"""Alerts as kept: opened once, followed, closed, delivered once per severity; suggestions replaced as a whole."""

from __future__ import annotations

import math
from typing import Any

import pytest
from gradspectra_core.alerts import Finding, Suggestion, alert_id
from gradspectra_core.catalogue import RULES
from gradspectra_store import Store
from gradspectra_store.alerts import (
    apply_findings,
    get_alert,
    list_alerts,
    list_incidents,
    patch_alert,
    supersede_alerts,
)
from gradspectra_store.deliveries import add_channel, delete_channel, list_channels, list_deliveries
from gradspectra_store.derived import Cursor, advance
from gradspectra_store.errors import BadRequest, UnknownAlert
from gradspectra_store.run_views import get_run
from gradspectra_store.runs import delete_run
from gradspectra_store.suggestions import list_suggestions, replace_suggestions
from store.batches import started


def found(
    change: str, step: int, *, rule: str = "loss_spike", opened: int = 10, severity: str = "warning", **more: Any
):
    return Finding(rule, change, severity, opened, step, **more)


def apply(store: Store, run: str, *findings: Finding, attempt: int = 1) -> list[dict[str, Any]]:
    with store.write() as conn:
        return apply_findings(conn, run, attempt, [(finding, 5000.0 + finding.step) for finding in findings], RULES)


def derive_up_to(store: Store, run: str, step: int) -> None:
    """As far as the detectors have seen the run."""
    with store.write() as conn:
        advance(conn, run, Cursor(0, 1, step, None))


def of_run(store: Store, run: str) -> tuple[str, int]:
    with store.read() as conn:
        shown = get_run(conn, run)
    assert shown is not None
    return shown["health"], shown["open_alerts"]


def test_an_alert_opens_with_all_its_fields(store: Store) -> None:
    run = started(store).run
    more = {"layers": ("a", "b"), "value": math.nan, "threshold": math.inf, "evidence": {"window": [1, math.nan]}}
    (alert,) = apply(store, run, found("open", 12, message="it rose", **more))
    assert alert["id"] == alert_id(run, 1, "loss_spike", 10, None)
    assert math.isnan(alert.pop("value"))
    assert math.isnan(alert["evidence"]["window"][1])
    assert {name: value for name, value in alert.items() if name not in ("id", "incident", "evidence")} == {
        "run": run,
        "attempt": 1,
        "rule": "loss_spike",
        "severity": "warning",
        "state": "open",
        "layers": ["a", "b"],
        "first_layer": "a",
        "opened_step": 10,
        "last_step": 12,
        "closed_step": None,
        "opened_at": 5012.0,
        "acknowledged_at": None,
        "threshold": math.inf,
        "message": "it rose",
        "meaning": RULES["loss_spike"].meaning,
        "remedy": RULES["loss_spike"].remedy,
        "note": "",
        "superseded": False,
        "muted": False,
    }
    assert alert["incident"] == alert["id"]
    assert of_run(store, run) == ("warning", 1)


def test_the_same_findings_twice_change_nothing(store: Store) -> None:
    run = started(store).run
    findings = [found("open", 10), found("update", 12, severity="critical", layers=("a",)), found("close", 20)]
    first, second = apply(store, run, *findings), apply(store, run, *findings)
    assert first == second
    assert len(first) == 1


def test_an_alert_is_followed_and_closes_itself(store: Store) -> None:
    run = started(store).run
    apply(store, run, found("open", 10, value=1.0, message="rose"))
    (alert,) = apply(store, run, found("update", 14, severity="critical", value=9.0, layers=("x",)))
    assert [alert[name] for name in ("severity", "value", "last_step", "first_layer", "message", "state")] == [
        *("critical", 9.0, 14, "x", "rose", "open")
    ]
    assert of_run(store, run) == ("critical", 1)
    (alert,) = apply(store, run, found("close", 30, severity="warning"))
    assert [alert[name] for name in ("severity", "state", "closed_step", "last_step")] == ["critical", "closed", 30, 30]
    assert of_run(store, run) == ("ok", 0)
    assert apply(store, run, found("close", 50, opened=45)) == []


def test_an_open_alert_goes_on_at_the_last_step_that_its_detector_has_seen(store: Store) -> None:
    run = started(store).run
    (alert,) = apply(store, run, found("open", 10))
    assert alert["last_step"] == 10
    derive_up_to(store, run, 400)
    with store.read() as conn:
        everywhere = [get_alert(conn, alert["id"]), *list_alerts(conn, run)[0], *list_incidents(conn, run)[0]]
    assert [one["last_step"] for one in everywhere] == [400, 400, 400]
    with store.write() as conn:
        assert patch_alert(conn, alert["id"], "closed", now=1.0)["last_step"] == 400, "by a person: it goes on"
    (alert,) = apply(store, run, found("close", 390))
    derive_up_to(store, run, 500)
    with store.read() as conn:
        assert get_alert(conn, alert["id"])["last_step"] == 390


def test_alerts_that_open_while_another_is_open_share_its_incident(store: Store) -> None:
    run = started(store).run
    alerts = apply(
        store,
        run,
        found("open", 10),
        found("open", 12, rule="gradient_spike", opened=12),
        found("close", 14),
        found("open", 16, rule="nonfinite", opened=16, severity="critical"),
        found("close", 20, rule="nonfinite", opened=16),
        found("close", 20, rule="gradient_spike", opened=12),
        found("open", 30, opened=30),
    )
    first, last = alerts[0]["id"], alerts[-1]["id"]
    assert [alert["incident"] for alert in alerts] == [first, first, first, last]


def test_a_person_acknowledges_and_closes_and_the_rule_does_not_reopen(store: Store) -> None:
    run = started(store).run
    (alert,) = apply(store, run, found("open", 10))
    with store.write() as conn:
        shown = patch_alert(conn, alert["id"], "acknowledged", "<b>seen</b>", 77.0)
    assert (shown["state"], shown["note"], shown["acknowledged_at"]) == ("acknowledged", "<b>seen</b>", 77.0)
    assert of_run(store, run) == ("warning", 0)
    with store.write() as conn:
        assert patch_alert(conn, alert["id"], "closed", None, 80.0)["state"] == "closed"
    assert of_run(store, run) == ("ok", 0)
    (again,) = apply(store, run, found("update", 15, severity="critical"))
    assert (again["state"], again["severity"]) == ("closed", "critical")


@pytest.mark.parametrize(
    ("state", "note", "field"), [("open", None, "state"), ("gone", None, "state"), (None, "x" * 70_000, "note")]
)
def test_a_bad_change_of_an_alert_is_refused(store: Store, state: str | None, note: str | None, field: str) -> None:
    run = started(store).run
    (alert,) = apply(store, run, found("open", 10), found("close", 11))
    with store.write() as conn, pytest.raises(BadRequest) as caught:
        patch_alert(conn, alert["id"], state, note, 1.0)
    assert caught.value.field == field
    for unknown in ("nosuch", "a\x00"):
        with store.read() as conn, pytest.raises(UnknownAlert):
            get_alert(conn, unknown)


def test_alerts_past_the_start_of_a_new_attempt_are_superseded(store: Store) -> None:
    run = started(store).run
    kept, past = apply(store, run, found("open", 10), found("open", 25, opened=20, rule="gradient_spike"))
    with store.write() as conn:
        closed = supersede_alerts(conn, run, 2, 15)
        assert supersede_alerts(conn, run, 2, 15) == []
        assert get_alert(conn, kept["id"])["state"] == "open"
    assert [(alert["id"], alert["state"], alert["superseded"], alert["closed_step"]) for alert in closed] == [
        (past["id"], "closed", True, 25)
    ]
    assert of_run(store, run) == ("warning", 1)


def test_what_opened_before_a_new_attempt_closes_where_no_detector_goes_on_with_it(store: Store) -> None:
    run = started(store).run
    kept, left = apply(store, run, found("open", 10), found("open", 12, opened=12, rule="gradient_spike"))
    with store.write() as conn:
        (closed,) = supersede_alerts(conn, run, 2, 15, {("loss_spike", 10)})
        assert get_alert(conn, kept["id"])["state"] == "open"
    assert (closed["id"], closed["state"], closed["superseded"], closed["closed_step"]) == (
        left["id"], "closed", False, 12,
    )  # fmt: skip
    assert of_run(store, run) == ("warning", 1)


@pytest.mark.parametrize(("derived", "until", "hidden_until"), [(13, 13, 25), (40, 14, 40)])
def test_what_a_new_attempt_closes_had_gone_on_until_that_took_its_place(
    store: Store, derived: int, until: int, hidden_until: int
) -> None:
    run = started(store).run
    apply(store, run, found("open", 12, opened=12), found("open", 25, opened=25, rule="gradient_spike"))
    derive_up_to(store, run, derived)
    with store.write() as conn:
        closed = {one["opened_step"]: one for one in supersede_alerts(conn, run, 2, 15, set())}
    assert {step: (one["closed_step"], one["last_step"]) for step, one in closed.items()} == {
        12: (until, until),
        25: (hidden_until, hidden_until),
    }


def test_an_alert_that_had_closed_before_a_resume_stays_closed_there_and_opens_again_where_it_gets_worse(
    store: Store,
) -> None:
    run = started(store).run
    apply(store, run, found("open", 10), found("close", 14))
    with store.write() as conn:
        assert supersede_alerts(conn, run, 2, 20, {("loss_spike", 10)}) == []
    (kept,) = apply(store, run, found("close", 25))
    assert [kept[name] for name in ("state", "closed_step", "last_step")] == ["closed", 14, 14]
    assert of_run(store, run) == ("ok", 0)
    (worse,) = apply(store, run, found("update", 27, value=9.0))
    assert [worse[name] for name in ("state", "closed_step", "last_step", "value")] == ["open", None, 27, 9.0]
    (closed,) = apply(store, run, found("close", 30))
    assert [closed[name] for name in ("state", "closed_step", "last_step")] == ["closed", 30, 30]


def test_an_alert_whose_closing_a_new_attempt_hides_is_open_again(store: Store) -> None:
    run = started(store).run
    apply(store, run, found("open", 10), found("close", 14))
    with store.write() as conn:
        (again,) = supersede_alerts(conn, run, 2, 12, {("loss_spike", 10)})
    assert [again[name] for name in ("state", "closed_step", "superseded")] == ["open", None, False]
    assert of_run(store, run) == ("warning", 1)
    (closed,) = apply(store, run, found("close", 18))
    assert [closed[name] for name in ("state", "closed_step")] == ["closed", 18]


def test_alerts_are_listed_newest_first_in_pages(store: Store) -> None:
    first, second = started(store).run, started(store).run
    for run, step in ((first, 10), (second, 20), (first, 30)):
        apply(store, run, found("open", step, opened=step))
    apply(store, first, found("close", 40, opened=30))
    with store.read() as conn:
        page, cursor = list_alerts(conn, limit=2)
        rest, end = list_alerts(conn, limit=2, cursor=cursor)
        assert [alert["opened_step"] for alert in page + rest] == [30, 20, 10]
        assert end is None
        assert [alert["opened_step"] for alert in list_alerts(conn, run=first, state="open")[0]] == [10]
        assert [alert["opened_step"] for alert in list_alerts(conn, since=5020.0)[0]] == [30, 20]
        with pytest.raises(BadRequest, match="state: must be one of open, acknowledged, closed, got 'x'"):
            list_alerts(conn, state="x")


def test_incidents_are_whole_on_whichever_page_they_come(store: Store) -> None:
    run, other = started(store).run, started(store).run
    apply(store, other, found("open", 15))
    rules = ("loss_spike", "gradient_spike", "divergence")
    for step in (10, 20, 30):
        opened = [found("open", step + at, rule=rule, opened=step + at) for at, rule in enumerate(rules)]
        apply(store, run, *opened, *(found("close", step + 5, rule=one.rule, opened=one.step) for one in opened))
    pages, cursor = [], None
    for _ in range(3):
        with store.read() as conn:
            items, cursor = list_incidents(conn, run, 1, cursor)
        pages.append(items)
    assert cursor is None
    assert [[alert["opened_step"] for alert in page] for page in pages] == [[30, 31, 32], [20, 21, 22], [10, 11, 12]]
    assert [{alert["incident"] for alert in page} for page in pages] == [{page[0]["id"]} for page in pages]


def test_an_alert_is_put_up_for_delivery_once_per_severity_where_it_is_wanted(store: Store) -> None:
    run = started(store).run
    with store.write() as conn:
        every = add_channel(conn, url="http://a.example/x", min_severity="info", now=1.0)
        grave = add_channel(conn, url="http://b.example/x", min_severity="critical", now=2.0)
    worse = found("update", 12, severity="critical")
    apply(store, run, found("open", 10), found("update", 11), worse)
    apply(store, run, found("open", 10), worse, found("close", 20))
    with store.read() as conn:
        log, _ = list_deliveries(conn)
    assert [(row["channel"], row["severity"], row["state"], row["tries"]) for row in reversed(log)] == [
        (every["id"], "warning", "due", 0),
        (every["id"], "critical", "due", 0),
        (grave["id"], "critical", "due", 0),
    ]
    with store.write() as conn:
        assert delete_channel(conn, every["id"])
        assert not delete_channel(conn, every["id"])
        assert [row["channel"] for row in list_deliveries(conn)[0]] == [grave["id"]]
        delete_run(conn, run)
        assert list_deliveries(conn) == ([], None)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "http://"}, "url"),
        ({"url": "http://h:99999/"}, "url"),
        ({"url": "x" * 2001}, "url"),
        ({"kind": "pigeon"}, "kind"),
        ({"min_severity": "bad"}, "min_severity"),
        ({"name": "x" * 201}, "name"),
    ],
)
def test_a_bad_channel_is_refused(store: Store, wrong: dict[str, Any], field: str) -> None:
    with store.write() as conn, pytest.raises(BadRequest) as caught:
        add_channel(conn, **({"url": "https://a.example/x", "now": 1.0} | wrong))
    assert caught.value.field == field


def test_a_channel_never_shows_its_secret(store: Store) -> None:
    with store.write() as conn:
        added = add_channel(conn, url="https://a.example/x", secret="s3cret", name="ops", now=1.0)
        add_channel(conn, url="https://b.example/x", now=2.0)
        listed = list_channels(conn)
    assert listed[0] == added
    assert [channel["signed"] for channel in listed] == [True, False]
    assert "s3cret" not in str(listed)


def test_suggestions_are_replaced_as_a_whole(store: Store) -> None:
    run = started(store).run
    common = {"confidence": "low", "enough_evidence": True, "experimental": False, "since_step": 1, "text": "t"}
    one = Suggestion("variance", "layer", "a", "learning_rate", 0.5, -math.inf, 1.0, evidence={}, source="s", **common)
    with store.write() as conn:
        replace_suggestions(conn, run, [one, one], step=40)
        replace_suggestions(conn, run, [one], step=50)
    with store.read() as conn:
        (shown,) = list_suggestions(conn, run)
        found_run = get_run(conn, run)
    assert (shown["rule"], shown["layer"], shown["value"], shown["low"]) == ("variance", "a", 0.5, -math.inf)
    assert found_run is not None
    assert found_run["suggestions_step"] == 50
    with store.write() as conn:
        replace_suggestions(conn, run, [])
        assert list_suggestions(conn, run) == []
