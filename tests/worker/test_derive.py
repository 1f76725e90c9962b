"""Deriving from the watermark on: the same rows however often, in what pieces and by how many it is done."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.alerts import list_alerts
from gradspectra_store.channels import add_channel
from gradspectra_store.derived import behind
from gradspectra_store.read import read_layers, read_series
from gradspectra_store.run_views import get_run
from gradspectra_store.runs import delete_run
from gradspectra_store.schema import cursors, derive_states
from gradspectra_store.suggestions import list_suggestions
from gradspectra_worker.derive import derive, optimizer_family
from worker.synthetic import TABLE, batches, faulty, numbers, outcome, start, take_in

OUTCOMES: dict[str, Any] = {}
"""Of the faulty run on each database, which is the same for every test."""


@pytest.fixture
def undisturbed(store: Store):
    """The outcome of the faulty run, derived batch by batch by one worker."""
    with store.write() as conn:
        add_channel(conn, url="https://example.org/hook", now=0.0)
    if store.dialect not in OUTCOMES:
        started = start(store)
        for batch in batches(faulty(), started.session):
            take_in(store, started, [batch])
            derive(store, started.run)
        OUTCOMES[store.dialect] = outcome(store, started.run)
    return OUTCOMES[store.dialect]


def test_what_is_derived_can_be_read(store):
    started = start(store)
    take_in(store, started, batches(faulty(), started.session))
    assert derive(store, started.run) == 50
    with store.read() as conn:
        series = read_series(conn, started.run, ["noise_scale", "signal_sq"], columns=1000)
        ranks = read_layers(conn, started.run, "effective_rank", None, None, 1000, None)
        alerts, _ = list_alerts(conn, started.run)
        suggestions = list_suggestions(conn, started.run)
        run = get_run(conn, started.run)
    assert series.x.tolist() == list(range(2, 401, 2))
    assert series.series["noise_scale"].present.sum() == 193  # all but the first seven
    assert ranks.x.tolist() == list(range(10, 401, 10))
    assert ranks.mean[1][0] == pytest.approx(1.754765, abs=1e-6)
    assert {(a["rule"], a["opened_step"], a["closed_step"], a["severity"]) for a in alerts} == {
        ("loss_spike", 301, 309, "warning"),
        ("gradient_spike", 301, 309, "critical"),
        ("dead_layer", 100, 146, "warning"),
    }
    assert [s["layer"] for s in suggestions] == [None, None, *TABLE.names]
    assert (run["derived_step"], run["suggestions_step"], run["health"]) == (400, 400, "ok")


def test_the_rows_do_not_depend_on_the_pieces(store, undisturbed):
    for chunk, size in ((64, 8), (3, 8), (1, 8)):
        started = start(store)
        take_in(store, started, batches(faulty(), started.session, per_batch=size))
        assert derive(store, started.run, chunk=chunk) == 50
        assert outcome(store, started.run) == undisturbed, chunk


def test_deriving_again_changes_nothing(store, undisturbed):
    started = start(store)
    take_in(store, started, batches(faulty(), started.session))
    derive(store, started.run)
    assert derive(store, started.run) == 0
    assert outcome(store, started.run) == undisturbed


def test_a_chunk_that_fails_leaves_nothing_behind(store, undisturbed, monkeypatch):
    started = start(store)
    take_in(store, started, batches(faulty(), started.session))
    calls = iter(range(100))

    def failing(*args, **options):
        if next(calls) == 20:
            raise RuntimeError("the disk is on fire")
        return advance(*args, **options)

    from gradspectra_worker import derive as module

    advance = module.advance
    monkeypatch.setattr(module, "advance", failing)
    with pytest.raises(RuntimeError, match="on fire"):
        derive(store, started.run, chunk=1)
    with store.read() as conn:
        assert conn.execute(sa.select(cursors.c.batch).where(cursors.c.run == started.run)).scalar_one() == 20
    assert derive(store, started.run) == 30
    assert outcome(store, started.run) == undisturbed


def test_two_workers_at_once_derive_each_batch_once(store, undisturbed):
    started = start(store)
    counts = []

    def work():
        done = 0
        while not finished.is_set() or _behind(store, started.run):
            done += derive(store, started.run, chunk=2)
        counts.append(done)

    finished = threading.Event()
    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for batch in batches(faulty(), started.session):
        take_in(store, started, [batch])
    finished.set()
    for worker in workers:
        worker.join(60)
    assert sum(counts) == 50
    assert outcome(store, started.run) == undisturbed


def _behind(store: Store, run: str) -> bool:
    with store.read() as conn:
        return behind(conn, run)


@pytest.mark.parametrize("url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)
def test_killed_at_any_moment_and_started_again_it_derives_the_same(store, url, undisturbed):
    started = start(store)
    stream = batches(faulty(), started.session)
    chooser = random.Random(4)
    kills = 0
    take_in(store, started, stream[:25])
    while kills < 5:
        process = subprocess.Popen([sys.executable, Path(__file__).with_name("killed.py"), url], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"started\n"
        time.sleep(chooser.uniform(0.0, 0.12))
        process.kill()
        process.wait(60)
        process.stdout.close()
        kills += 1
        take_in(store, started, stream[20 + 5 * kills : 25 + 5 * kills])
    derive(store, started.run)
    assert outcome(store, started.run) == undisturbed


def test_announcements_follow_each_commit(store):
    started = start(store)
    take_in(store, started, batches(faulty(), started.session))
    heard = []

    def announce(announcement):
        with store.read() as conn:
            assert get_run(conn, started.run)["derived_step"] == announcement["derived_step"]
        heard.append(announcement)

    derive(store, started.run, announce=announce, chunk=40)
    run = [a for a in heard if a["type"] == "run"]
    assert run == [
        {"type": "run", "run": started.run, "batch": 40, "step": 320, "derived_step": 320},
        {"type": "run", "run": started.run, "batch": 50, "step": 400, "derived_step": 400},
    ]
    alerts = [(a["alert"]["rule"], a["alert"]["state"]) for a in heard if a["type"] == "alert"]
    assert {rule for rule, _ in alerts} == {"loss_spike", "gradient_spike", "dead_layer"}


def test_a_run_that_is_gone_or_unknown_is_no_error(store):
    assert derive(store, "nosuchrun") == 0
    started = start(store)
    take_in(store, started, batches(numbers(8), started.session))
    with store.write() as conn:
        delete_run(conn, started.run)
    assert derive(store, started.run) == 0


def test_a_resumed_run_goes_on_from_the_state_before_its_first_step(store):
    one = start(store)
    take_in(store, one, batches(faulty(1400, first=1), one.session, per_batch=50))
    derive(store, one.run)
    with store.read() as conn:
        kept = conn.execute(sa.select(derive_states.c.attempt, derive_states.c.step)).all()
        before = {a["rule"]: a for a in list_alerts(conn, one.run)[0]}
    assert [tuple(row) for row in kept] == [(1, 1000)]
    assert before["loss_spike"]["opened_step"] == 1051
    two = start(store, resume=one.run, start_step=1040)
    take_in(store, two, batches(numbers(40, 9, first=1041), two.session))
    derive(store, one.run)
    with store.read() as conn:
        cursor = conn.execute(sa.select(cursors)).one()
        after = {a["rule"]: a for a in list_alerts(conn, one.run)[0]}
        kept = conn.execute(sa.select(derive_states.c.attempt, derive_states.c.step)).all()
        series = read_series(conn, one.run, ["noise_scale"], columns=5000)
    assert (cursor.attempt, cursor.derived_step) == (2, 1080)
    assert cursor.state["noise"]["records"] == 500 + 20
    assert [tuple(row) for row in kept] == [(1, 1000), (1, 1400)]
    assert series.x[-1] == 1080
    assert after["loss_spike"]["state"] == "closed"


def test_an_open_alert_of_numbers_that_stay_nan_goes_on_to_the_last_step(store):
    one = start(store)
    run = numbers(1500)
    run["loss"][1049:] = float("nan")
    for batch in batches(run, one.session, per_batch=50):
        take_in(store, one, [batch])
        derive(store, one.run)
    with store.read() as conn:
        (alert,) = (one for one in list_alerts(conn, one.run)[0] if one["rule"] == "nonfinite")
    assert [alert[name] for name in ("opened_step", "last_step", "closed_step", "state")] == [1050, 1500, None, "open"]


def test_a_resumed_run_closes_the_alert_of_the_attempt_before(store):
    one = start(store)
    run = numbers(1000)
    run["loss"][994:] = 40.0
    take_in(store, one, batches(run, one.session, per_batch=50))
    two = start(store, resume=one.run, start_step=1000)
    take_in(store, two, batches(numbers(100, 1, first=1001), two.session, per_batch=50))
    derive(store, one.run)
    with store.read() as conn:
        (alert,) = list_alerts(conn, one.run)[0]
    assert (alert["attempt"], alert["opened_step"], alert["state"], alert["closed_step"]) == (1, 995, "closed", 1005)


def test_an_alert_that_closed_before_the_resume_keeps_the_step_at_which_it_closed(store):
    one = start(store)
    run = numbers(1200)
    run["loss"][994:1000] = 40.0  # open at step 1,000, whose state the resumed run goes on from
    take_in(store, one, batches(run, one.session, per_batch=50))
    two = start(store, resume=one.run, start_step=1100)
    take_in(store, two, batches(numbers(100, 1, first=1101), two.session, per_batch=50))
    derive(store, one.run)
    with store.read() as conn:
        (alert,) = list_alerts(conn, one.run)[0]
    found = [alert[name] for name in ("opened_step", "state", "closed_step", "last_step")]
    assert found == [995, "closed", 1005, 1005]


def test_a_fault_just_after_a_resume_opens_an_alert_though_the_state_remembers_an_older_one_as_open(store):
    one = start(store)
    run = numbers(1200)
    run["loss"][994:1000] = 40.0  # as above: closed by step 1,005
    take_in(store, one, batches(run, one.session, per_batch=50))
    two = start(store, resume=one.run, start_step=1100)
    again = numbers(100, 1, first=1101)
    again["loss"][1:3] = 40.0  # no worse, and before five calm points
    take_in(store, two, batches(again, two.session, per_batch=50))
    derive(store, one.run)
    with store.read() as conn:
        alerts = sorted(list_alerts(conn, one.run)[0], key=lambda alert: alert["attempt"])
    found = [tuple(alert[name] for name in ("attempt", "opened_step", "closed_step")) for alert in alerts]
    assert found == [(1, 995, 1005), (2, 1102, 1108)]


def test_an_alert_that_is_open_where_the_run_resumes_goes_on_and_is_not_opened_twice(store):
    one = start(store)
    run = numbers(1000)
    run["loss"][994:] = 40.0
    take_in(store, one, batches(run, one.session, per_batch=50))
    two = start(store, resume=one.run, start_step=1000)
    again = numbers(100, 1, first=1001)
    again["loss"][1:3] = 40.0
    take_in(store, two, batches(again, two.session, per_batch=50))
    derive(store, one.run)
    with store.read() as conn:
        (alert,) = list_alerts(conn, one.run)[0]
    assert (alert["attempt"], alert["opened_step"], alert["closed_step"]) == (1, 995, 1008)


def test_an_alert_that_the_resumed_runs_state_is_older_than_closes_and_is_not_there_twice(store):
    one = start(store)
    run = numbers(1400)
    run["grad_max"][900:, 1] = 0.0
    run["grad_max"][1100:, 3] = 0.0
    take_in(store, one, batches(run, one.session, per_batch=50))
    derive(store, one.run)
    two = start(store, resume=one.run, start_step=1300)
    again = numbers(100, 1, first=1301)
    again["grad_max"][:, [1, 3]] = 0.0
    take_in(store, two, batches(again, two.session, per_batch=50))
    derive(store, one.run)
    with store.read() as conn:
        alerts, _ = list_alerts(conn, one.run)
        health = get_run(conn, one.run)["open_alerts"]
    assert sorted((a["attempt"], a["first_layer"], a["opened_step"], a["state"]) for a in alerts) == [
        (1, TABLE.names[3], 1160, "closed"),
        (1, TABLE.names[1], 960, "open"),  # the state of step 1,000 follows it
        (2, TABLE.names[3], 1360, "open"),
    ]
    assert health == 2


def test_a_spool_of_an_older_attempt_gives_ranks_and_leaves_the_series_alone(store):
    one = start(store)
    stream = batches(faulty(400), one.session)
    take_in(store, one, stream[:20])
    two = start(store, resume=one.run, start_step=320)
    take_in(store, two, batches(numbers(40, 1, first=321), two.session))
    derive(store, one.run)
    take_in(store, one, stream[20:])
    assert derive(store, one.run) == 30
    with store.read() as conn:
        ranks = read_layers(conn, one.run, "effective_rank", None, None, 1000, None)
        run = get_run(conn, one.run)
        alerts = [a for a in list_alerts(conn, one.run)[0] if a["opened_step"] == 301]
    assert ranks.x.tolist() == list(range(10, 361, 10))
    assert (run["derived_step"], alerts) == (360, [])


def test_other_ranks_do_not_feed_the_detectors(store):
    one = start(store)
    other = start(store, resume=one.run, rank=1)
    take_in(store, one, batches(numbers(80), one.session))
    take_in(store, other, batches(faulty(80), other.session))
    assert derive(store, one.run) == 20
    with store.read() as conn:
        assert list_alerts(conn, one.run)[0] == []
        assert get_run(conn, one.run)["derived_step"] == 80


@pytest.mark.parametrize(
    ("environment", "family"),
    [
        ({"optimizer": "SGD"}, "sgd"),
        ({"optimizer": ["sgd", "AdamW"]}, "sgd"),
        ({"optimizer": "AdamW"}, "adam"),
        ({"optimizer": []}, "adam"),
        ({"optimizer": 3}, "adam"),
        ({}, "adam"),
    ],
)
def test_the_family_is_that_of_the_first_optimizer_named(environment, family):
    assert optimizer_family(environment) == family
