"""The outbox: taken once, tried again later and later, given up after six tries."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from gradspectra_core.alerts import Finding
from gradspectra_core.catalogue import RULES
from gradspectra_store import Store
from gradspectra_store.alerts import apply_findings, get_alert
from gradspectra_store.deliveries import (
    LONGEST_WAIT,
    add_channel,
    due_deliveries,
    list_deliveries,
    record_delivery,
    undelivered,
)
from gradspectra_store.mutes import mute_rule
from gradspectra_store.schema import deliveries
from store.batches import started


@pytest.fixture
def alert(store: Store) -> str:
    """An alert with one delivery due."""
    run = started(store).run
    with store.write() as conn:
        add_channel(conn, url="https://a.example/x", secret="k", now=1.0)
        finding = Finding("loss_spike", "open", "warning", 10, 10)
        return str(apply_findings(conn, run, 1, [(finding, 2000.0)], RULES)[0]["id"])


def take(store: Store, now: float) -> list[dict[str, Any]]:
    with store.write() as conn:
        return due_deliveries(conn, now, 10)


def record(store: Store, delivery: int, ok: bool, now: float, status: int | None = 200, error: str = "") -> None:
    with store.write() as conn:
        record_delivery(conn, delivery, ok, status, error, now)


def log(store: Store) -> dict[str, Any]:
    with store.read() as conn:
        return list_deliveries(conn)[0][0]


def test_a_delivery_says_all_that_sending_needs(store: Store, alert: str) -> None:
    (due,) = take(store, 3000.0)
    channel = due["channel"]
    assert (due["alert"]["id"], due["severity"], due["tries"]) == (alert, "warning", 0)
    assert (channel["kind"], channel["url"], channel["secret"]) == ("webhook", "https://a.example/x", "k")
    assert due["key"] == f"{alert}-{channel['id']}-warning"


def test_a_delivery_is_taken_once_and_again_if_whoever_took_it_died(store: Store, alert: str) -> None:
    first = take(store, 3000.0)
    assert take(store, 3059.0) == []
    again = take(store, 3061.0)
    assert [due["alert"]["id"] for due in first] == [alert]
    assert [due["key"] for due in first] == [due["key"] for due in again]


def test_a_delivery_does_not_wait_for_a_clock_that_was_set_back(store: Store, alert: str) -> None:
    (due,) = take(store, 90_000.0)
    assert take(store, 90_060.0 - LONGEST_WAIT - 60.0) == [], "it may still be somebody's"
    (again,) = take(store, 3000.0)
    assert (due["alert"]["id"], again["key"]) == (alert, due["key"])


def test_a_sent_delivery_is_done(store: Store, alert: str) -> None:
    (due,) = take(store, 3000.0)
    record(store, due["id"], True, 3001.0, status=204)
    assert take(store, 1e9) == []
    row = log(store)
    assert [row[name] for name in ("state", "tries", "status", "sent_at", "alert")] == ["sent", 1, 204, 3001.0, alert]


def test_a_failed_delivery_waits_four_times_longer_each_time_and_ends_after_six(store: Store, alert: str) -> None:
    now, waits = 3000.0, []
    for _ in range(6):
        (due,) = take(store, now)
        record(store, due["id"], False, now, status=None, error="timed\x00 out" + "!" * 1000)
        waits.append(log(store)["next_at"] - now)
        now += 1e5
    assert take(store, 1e9) == []
    row = log(store)
    assert (row["state"], row["tries"], row["status"], row["alert"]) == ("failed", 6, None, alert)
    assert row["error"].startswith("timed out!")
    assert len(row["error"]) == 500
    for tried, wait in enumerate(waits[:5]):
        assert 10 * 4**tried <= wait <= 12.5 * 4**tried


def test_after_a_failed_try_the_others_of_its_channel_wait_and_those_of_no_other(store: Store, alert: str) -> None:
    with store.write() as conn:
        failing = list_deliveries(conn)[0][0]["channel"]
        add_channel(conn, url="https://b.example/x", now=2.0)
        run = get_alert(conn, alert)["run"]
        for step in (20, 30):
            apply_findings(conn, run, 1, [(Finding("loss_spike", "open", "warning", step, step), 2000.0)], RULES)
    (first, *_) = take(store, 3000.0)
    with store.write() as conn:  # the others were given back
        conn.execute(sa.update(deliveries).where(deliveries.c.id != first["id"]).values(next_at=0.0))
    record(store, first["id"], False, 3001.0, status=500)
    assert {due["channel"]["id"] == failing for due in take(store, 3009.0)} == {False}
    assert [due["id"] == first["id"] for due in take(store, 3020.0)] == [True]
    assert {due["channel"]["id"] == failing for due in take(store, 3031.0)} == {True}


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_two_senders_at_once_take_different_deliveries(store: Store, alert: str) -> None:
    with store.write() as one, store.write() as other:
        assert [due["alert"]["id"] for due in due_deliveries(one, 3000.0, 10)] == [alert]
        assert due_deliveries(other, 3000.0, 10) == []


def test_recording_a_delivery_that_is_gone_is_no_error(store: Store) -> None:
    record(store, 12345, True, 1.0)


@pytest.mark.usefixtures("alert")
def test_a_try_that_fails_late_undoes_nothing(store: Store) -> None:
    (late,) = take(store, 3000.0)
    (due,) = take(store, 3061.0)
    record(store, due["id"], True, 3062.0, status=204)
    sent = log(store)
    for _ in range(6):
        record(store, late["id"], False, 3063.0, status=None, error="timed out")
    assert log(store) == sent


@pytest.mark.usefixtures("alert")
def test_what_failed_by_one_and_went_through_by_another_is_sent(store: Store) -> None:
    (late,) = take(store, 3000.0)
    (due,) = take(store, 3061.0)
    record(store, due["id"], False, 3062.0, status=500, error="answered 500")
    record(store, late["id"], True, 3063.0, status=204)
    assert [log(store)[name] for name in ("state", "tries", "error")] == ["sent", 2, ""]


@pytest.mark.usefixtures("alert")
def test_what_was_not_delivered_is_counted_until_it_is_sent_and_apart_once_it_is_given_up(store: Store) -> None:
    def counted() -> tuple[int, int]:
        with store.read() as conn:
            return undelivered(conn)

    assert counted() == (1, 0)
    (due,) = take(store, 3000.0)
    for now in range(5):
        record(store, due["id"], False, 3000.0 + now, status=500)
    assert counted() == (1, 0)
    record(store, due["id"], False, 4000.0, status=500)
    assert counted() == (0, 1)
    record(store, due["id"], True, 5000.0)
    assert counted() == (0, 0)


def test_what_is_not_sent_since_its_rule_was_muted_was_not_given_up(store: Store, alert: str) -> None:
    with store.write() as conn:
        mute_rule(conn, get_alert(conn, alert)["run"], "loss_spike", 3000.0)
        assert undelivered(conn) == (0, 0)
