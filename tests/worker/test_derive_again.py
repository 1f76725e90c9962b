"""Deriving a run another time: the same comes out, in the place of what it had, and people's part of it stays."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.alerts import patch_alert
from gradspectra_store.alerts_again import NO_MORE
from gradspectra_store.block_schema import blocks
from gradspectra_store.channels import add_channel
from gradspectra_store.missing import missing_rows
from gradspectra_store.read import read_layers
from gradspectra_store.rederivations import CannotDeriveAgain
from gradspectra_store.run_views import get_run
from gradspectra_store.schema import alerts, cursors, deliveries, suggestions
from gradspectra_worker.compact import compact
from gradspectra_worker.derive import derive
from gradspectra_worker.derive_again import derive_again
from worker.again import alert, all_alerts, derived_run, nothing_beside, resumed, without_batch
from worker.synthetic import batches, faulty, outcome, start, take_in


@pytest.mark.parametrize("compacted", [False, True])
def test_the_same_comes_out(store: Store, tmp_path: Path, compacted: bool) -> None:
    run = derived_run(store, compacted=compacted)
    before = outcome(store, run)
    done = derive_again(store, run, tmp_path)
    after = outcome(store, run)
    assert after["cursor"][0]["batch"] == before["cursor"][0]["batch"] + 1
    assert without_batch(after) == without_batch(before)
    assert (done.steps, done.derived_step, done.new, done.kept, done.gone) == (400, 400, 0, 3, 0)
    assert list(tmp_path.glob("gradspectra-*")) == []
    assert nothing_beside(store, run)
    with store.read() as conn:
        assert missing_rows(conn) == []


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("at", [1040, 1052])
def test_several_attempts_come_out_the_same(store: Store, tmp_path: Path, at: int) -> None:
    run = derived_run(store, 1400, compacted=True, most=132)  # the spike at 1051 is open at the end
    resumed(store, run, at, 700)
    resumed(store, run, 1700, 100)
    resumed(store, run, 904, 300)
    before = outcome(store, run)
    states = [(row["attempt"], row["step"]) for row in before["states"]]
    assert states == [(1, 1000), (1, 1056), (2, at + 700), (3, 1800), (4, 1000)]
    spikes = {row["superseded"] for row in before["alerts"] if row["rule"] == "loss_spike"}
    assert spikes == {at == 1040}
    done = derive_again(store, run, tmp_path)
    after = outcome(store, run)
    assert without_batch(after) == without_batch(before)
    assert done.steps == 1056 + 700 + 100 + 300


def test_what_was_spoiled_is_made_anew(store: Store, tmp_path: Path) -> None:
    run = derived_run(store, compacted=True)
    before = without_batch(outcome(store, run))
    with store.write() as conn:
        spike = alerts.c.run == run, alerts.c.rule == "gradient_spike"
        conn.execute(sa.update(alerts).where(*spike).values(severity="info", value=0.0, message="wrong"))
        conn.execute(sa.delete(alerts).where(alerts.c.run == run, alerts.c.rule == "dead_layer"))
        conn.execute(sa.delete(suggestions).where(suggestions.c.run == run))
        conn.execute(sa.delete(blocks).where(blocks.c.run == run, blocks.c.derived, blocks.c.name == "noise_scale"))
        conn.execute(sa.update(cursors).where(cursors.c.run == run).values(state=None))
    with store.read() as conn:
        assert (read_layers(conn, run, "noise_scale").x >= 300).all()  # also what is kept of answers goes
    done = derive_again(store, run, tmp_path)
    assert without_batch(outcome(store, run)) == before
    assert (done.new, done.kept, done.gone) == (1, 2, 0)


def test_what_people_did_with_an_alert_stays(store: Store, tmp_path: Path) -> None:
    with store.write() as conn:
        add_channel(conn, url="https://example.org/hook", now=0.0)
    run = derived_run(store)
    dead, spike = alert(store, run, "dead_layer"), alert(store, run, "loss_spike")
    with store.write() as conn:
        conn.execute(sa.update(alerts).where(alerts.c.id == dead["id"]).values(state="open", closed_step=None))
        patch_alert(conn, dead["id"], state="acknowledged", note="known", now=5.0)
        conn.execute(sa.delete(alerts).where(alerts.c.id == spike["id"]))
        sent = conn.execute(sa.select(deliveries).order_by(deliveries.c.id)).all()
    assert sent
    derive_again(store, run, tmp_path)
    after = alert(store, run, "dead_layer")
    assert (after["state"], after["closed_step"], after["note"], after["acknowledged_at"]) == (
        "closed",
        146,
        "known",
        5,
    )
    with store.read() as conn:
        assert conn.execute(sa.select(deliveries).order_by(deliveries.c.id)).all() == sent
    assert alert(store, run, "loss_spike")["id"] == spike["id"]


def test_an_alert_that_goes_on_stays_acknowledged_or_closed_by_hand(store: Store, tmp_path: Path) -> None:
    for state in ("open", "acknowledged", "closed"):
        run = derived_run(store, most=15)
        dead = alert(store, run, "dead_layer")
        assert dead["closed_step"] is None
        if state != "open":
            with store.write() as conn:
                patch_alert(conn, dead["id"], state=state, now=5.0)
        derive_again(store, run, tmp_path)
        with store.read() as conn:
            shown = get_run(conn, run)
        assert shown is not None
        assert alert(store, run, "dead_layer")["state"] == state
        assert shown["open_alerts"] == sum(one["state"] == "open" for one in all_alerts(store, run))


def test_an_alert_that_comes_out_no_more_goes_unless_somebody_knows_it(store: Store, tmp_path: Path) -> None:
    with store.write() as conn:
        channel = add_channel(conn, url="https://example.org/hook", now=0.0)
    run = derived_run(store)
    row = alert(store, run, "dead_layer")
    row.pop("muted")
    with store.write() as conn:
        for name, values in (
            ("unknown", {}),
            ("noted", {"note": "mine"}),
            ("seen", {"acknowledged_at": 3.0, "state": "acknowledged"}),
            ("sent", {"incident": "unknown"}),
        ):
            own = row | {"id": name, "rule": "nonfinite", "state": "open", "closed_step": None} | values
            conn.execute(sa.insert(alerts).values(**own))
            common = {"channel": channel["id"], "tries": 0, "next_at": 0.0, "error": "", "created_at": 0.0}
            for severity, state in (("info", "sent" if name == "sent" else "due"), ("warning", "due")):
                conn.execute(sa.insert(deliveries).values(alert=name, severity=severity, state=state, **common))
    done = derive_again(store, run, tmp_path)
    assert (done.new, done.kept, done.gone) == (0, 3, 4)
    left = {one["id"]: one for one in all_alerts(store, run) if one["rule"] == "nonfinite"}
    assert left.keys() == {"noted", "seen", "sent"}
    assert {(one["state"], one["closed_step"]) for one in left.values()} == {("closed", row["last_step"])}
    assert all(one["message"] == f"{row['message']} {NO_MORE}" for one in left.values())
    assert left["sent"]["incident"] == "sent"
    with store.read() as conn:
        query = sa.select(deliveries.c.alert, deliveries.c.state).where(deliveries.c.alert.in_([*left, "unknown"]))
        assert [tuple(one) for one in conn.execute(query)] == [("sent", "sent")]
    derive_again(store, run, tmp_path)
    assert {one["message"] for one in all_alerts(store, run) if one["rule"] == "nonfinite"} == {left["sent"]["message"]}


def test_a_new_alert_is_delivered_to_nobody(store: Store, tmp_path: Path) -> None:
    run = derived_run(store)
    with store.write() as conn:
        add_channel(conn, url="https://example.org/hook", now=0.0)
        conn.execute(sa.delete(alerts).where(alerts.c.run == run))
    assert derive_again(store, run, tmp_path).new == 3
    with store.read() as conn:
        assert conn.execute(sa.select(deliveries)).all() == []


def test_a_run_that_goes_on_is_derived_further_from_what_came_out(store: Store, tmp_path: Path) -> None:
    one, other = start(store), start(store)
    stream = batches(faulty(1100), one.session)
    for started in (one, other):
        take_in(store, started, stream[:70])
        derive(store, started.run)
    derive_again(store, one.run, tmp_path)
    for started in (one, other):
        take_in(store, started, stream[70:])
        derive(store, started.run)
        compact(store, started.run)
    assert without_batch(outcome(store, one.run)) == without_batch(outcome(store, other.run))


def test_batches_that_come_meanwhile_are_in_it(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = start(store), start(store)
    stream = batches(faulty(), one.session)
    take_in(store, other, stream)
    derive(store, other.run)
    take_in(store, one, stream[:30])
    derive(store, one.run)
    from gradspectra_store.swapping import Swap

    stage, coming = Swap.stage, [stream[30:40], stream[40:]]

    def staged(swap: Swap) -> None:
        stage(swap)
        if coming:
            take_in(store, one, coming.pop(0))
            if not coming:
                compact(store, one.run)
            derive(store, one.run)

    monkeypatch.setattr(Swap, "stage", staged)
    done = derive_again(store, one.run, tmp_path, wait=0.0)
    assert done.steps == 400
    assert without_batch(outcome(store, one.run)) == without_batch(outcome(store, other.run))


def test_a_run_that_is_behind_its_last_batch_is_left_as_it_is(store: Store, tmp_path: Path) -> None:
    started = start(store)
    stream = batches(faulty(), started.session)
    take_in(store, started, stream[:40])
    derive(store, started.run)
    take_in(store, started, stream[40:])
    before = outcome(store, started.run)
    with pytest.raises(CannotDeriveAgain, match="was never found derived up to its last batch; nothing was changed"):
        derive_again(store, started.run, tmp_path, wait=0.0)
    assert outcome(store, started.run) == before
    derive(store, started.run)
    derive_again(store, started.run, tmp_path)
