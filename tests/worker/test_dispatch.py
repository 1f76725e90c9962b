"""The inline dispatcher: coalesces, survives failures, sweeps up what was lost, and stops at once."""

import logging
import threading
import time

import pytest
import sqlalchemy as sa
from gradspectra_store.alerts import list_alerts
from gradspectra_store.channels import add_channel
from gradspectra_store.deliveries import list_deliveries
from gradspectra_store.derived import behind
from gradspectra_store.run_views import get_run
from gradspectra_store.schema import cursors
from gradspectra_worker import dispatch
from gradspectra_worker.derive import derive
from gradspectra_worker.dispatch import InlineDispatcher
from gradspectra_worker.sweep import sweep
from worker.synthetic import batches, faulty, numbers, outcome, start, take_in


def wait_until(condition, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not come true in time"
        time.sleep(0.01)


def derived_step(store, run: str) -> int:
    with store.read() as conn:
        return get_run(conn, run)["derived_step"]


def test_what_is_requested_is_derived_and_announced(store):
    heard = []
    dispatcher = InlineDispatcher(store, heard.append, sweep_seconds=60.0)
    dispatcher.start()
    started = start(store)
    for batch in batches(numbers(80), started.session):
        take_in(store, started, [batch])
        dispatcher.request(started.run)
    wait_until(lambda: derived_step(store, started.run) == 80)
    dispatcher.stop()
    assert [a["derived_step"] for a in heard] == sorted(a["derived_step"] for a in heard)
    assert heard[-1] == {"type": "run", "run": started.run, "batch": 10, "step": 80, "derived_step": 80}


def test_work_left_by_an_earlier_process_is_taken_up_without_a_request(store):
    started = start(store)
    take_in(store, started, batches(numbers(80), started.session))
    dispatcher = InlineDispatcher(store, sweep_seconds=60.0)
    dispatcher.start()
    wait_until(lambda: derived_step(store, started.run) == 80)
    dispatcher.stop()


def test_the_log_is_moved_into_the_file_while_many_batches_come(store, monkeypatch):
    if store.dialect != "sqlite":
        pytest.skip("PostgreSQL has a log of its own")
    moved = threading.Event()
    monkeypatch.setattr(dispatch, "CHECKPOINT_SECONDS", 0.01)
    monkeypatch.setattr(store, "_checkpoint", lambda _mode: moved.set() or 0)
    dispatcher = InlineDispatcher(store, sweep_seconds=60.0)
    dispatcher.start()
    started = start(store)
    wait_until(moved.is_set)  # by the first sweep
    moved.clear()
    for batch in batches(numbers(dispatch.CHECKPOINT_COMMITS), started.session, 1):
        take_in(store, started, [batch])
    wait_until(moved.is_set)
    dispatcher.stop()


def test_a_lost_request_is_found_by_the_sweep(store):
    dispatcher = InlineDispatcher(store, sweep_seconds=0.1)
    dispatcher.start()
    started = start(store)
    take_in(store, started, batches(numbers(16), started.session))
    wait_until(lambda: derived_step(store, started.run) == 16)
    dispatcher.stop()


def test_requests_for_one_run_are_coalesced(store, monkeypatch):
    gate, calls = threading.Event(), []

    def slow(_store, run, **_):
        calls.append(run)
        gate.wait(60)
        return 0

    monkeypatch.setattr(dispatch, "derive", slow)
    dispatcher = InlineDispatcher(store, sweep_seconds=60.0)
    dispatcher.start()
    dispatcher.request("a")
    wait_until(lambda: calls == ["a"])
    for _ in range(50):
        dispatcher.request("b")
        dispatcher.request("a")
    gate.set()
    wait_until(lambda: len(calls) == 3)
    time.sleep(0.05)
    dispatcher.stop()
    assert calls == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("worked", "batches", "left", "flooded", "rest"),
    [
        (0.25, 16, True, True, 0.75),
        (0.01, 16, True, True, 0.05),
        (0.01, 16, False, True, 0.05),
        (0.01, 32, True, True, 0.25),
        (0.25, 16, False, False, 0.05),
        (0.25, 256, False, False, 0.05),
        (0.25, 16, True, False, 0.0),
    ],
)
def test_a_run_rests_by_what_its_turn_left_and_by_what_came_meanwhile(
    store, monkeypatch, worked, batches, left, flooded, rest
):
    clock = [100.0]

    def derived(_store, run, **_):
        clock[0] += worked
        if flooded:
            dispatcher.request(run)
        return batches

    monkeypatch.setattr(dispatch, "derive", derived)
    monkeypatch.setattr(dispatch, "behind", lambda _conn, _run: left)
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: clock[0])
    dispatcher = InlineDispatcher(store, sweep_seconds=60.0)
    dispatcher.request("a")
    dispatcher._waiting.clear()
    dispatcher._take_turn("a")
    assert dispatcher._resting["a"] == pytest.approx(clock[0] + rest)
    assert ("a" in dispatcher._waiting) == (left or flooded)


def test_runs_of_which_batches_come_at_the_same_time_share_the_deriving_threads_time(store, monkeypatch):
    clock = [100.0]

    def derived(_store, _run, **_):
        clock[0] += 0.1
        for other in ("a", "b", "c"):
            dispatcher.request(other)
        return 16

    monkeypatch.setattr(dispatch, "derive", derived)
    monkeypatch.setattr(dispatch, "behind", lambda _conn, _run: True)
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: clock[0])
    dispatcher = InlineDispatcher(store, sweep_seconds=60.0)
    dispatcher._take_turn("a")
    assert dispatcher._resting["a"] == pytest.approx(clock[0] + 3 * 0.1 * (1 / 0.25 - 1))


def test_compaction_lets_a_flood_pass_but_waits_no_longer_than_its_bound(store, monkeypatch):
    clock = [100.0]

    def derived(_store, run, **_):
        clock[0] += 0.1
        dispatcher.request(run)
        return 32

    def wait(seconds):
        waited.append(seconds)
        clock[0] += seconds
        if len(waited) < 100:
            dispatcher._take_turn("a")

    monkeypatch.setattr(dispatch, "derive", derived)
    monkeypatch.setattr(dispatch, "behind", lambda _conn, _run: True)
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: clock[0])
    dispatcher = InlineDispatcher(store, sweep_seconds=60.0)
    monkeypatch.setattr(dispatcher._stopping, "wait", wait)
    waited = []
    dispatcher._let_flood_pass()
    assert waited == []
    dispatcher._take_turn("a")
    begin = clock[0]
    dispatcher._let_flood_pass()
    assert 10.0 <= clock[0] - begin < 10.2
    assert len(waited) < 100
    waited += [0.0] * 100
    dispatcher._flood_until = clock[0] + 0.5
    begin = clock[0]
    dispatcher._let_flood_pass()
    assert clock[0] - begin == pytest.approx(0.5)


def test_a_turn_that_ended_at_its_bound_of_steps_is_followed_by_the_next_at_once(store, monkeypatch):
    monkeypatch.setattr("gradspectra_worker.derive.STEPS_PER_TRANSACTION", 16)
    started = start(store)
    take_in(store, started, batches(numbers(80), started.session))
    dispatcher = InlineDispatcher(store, sweep_seconds=60.0)
    dispatcher._take_turn(started.run)
    assert derived_step(store, started.run) == 16
    assert dispatcher._next(0.0) == started.run


def test_a_failure_is_logged_and_the_sweep_tries_again(store, monkeypatch, caplog):
    failures = iter([True, True])

    def failing(*args, **options):
        if next(failures, False):
            raise RuntimeError("no luck")
        return derive(*args, **options)

    monkeypatch.setattr(dispatch, "derive", failing)
    monkeypatch.setattr(dispatch, "FAILED_REST_SECONDS", 0.0)
    started = start(store)
    take_in(store, started, batches(numbers(16), started.session))
    with caplog.at_level(logging.ERROR):
        dispatcher = InlineDispatcher(store, sweep_seconds=0.05)
        dispatcher.start()
        wait_until(lambda: derived_step(store, started.run) == 16)
        dispatcher.stop()
    assert caplog.text.count("RuntimeError: no luck") == 2


def test_a_run_that_cannot_be_derived_is_named_and_rests_while_others_go_on(store, caplog):
    spoiled, fine = start(store), start(store)
    for one in (spoiled, fine):
        take_in(store, one, batches(numbers(16), one.session))
    with store.write() as conn:
        conn.execute(sa.update(cursors).where(cursors.c.run == spoiled.run).values(state={"version": 1}))
    dispatcher = InlineDispatcher(store, sweep_seconds=60.0)
    with caplog.at_level(logging.ERROR):
        dispatcher._take_turn(spoiled.run)
        for _ in range(3):
            dispatcher.request(spoiled.run)
            dispatcher.request(fine.run)
            assert dispatcher._next(0.0) == fine.run
    assert caplog.text.count(f"deriving run {spoiled.run} failed") == 1


def test_alerts_are_delivered_soon_after_they_open_and_do_not_hold_up_deriving(store, monkeypatch):
    sent, gate = threading.Event(), threading.Event()

    def slow(_store, **_):
        if list_open():
            sent.set()
            gate.wait(60)
        return 0

    def list_open():
        with store.read() as conn:
            return list_deliveries(conn)[0]

    with store.write() as conn:
        add_channel(conn, url="https://example.org/", now=0.0)
    monkeypatch.setattr(dispatch, "deliver_due", slow)
    dispatcher = InlineDispatcher(store, sweep_seconds=60.0, allow_hosts=("example.org",))
    dispatcher.start()
    started = start(store)
    stream = batches(faulty(), started.session)
    take_in(store, started, stream[:40])
    dispatcher.request(started.run)
    assert sent.wait(60)
    take_in(store, started, stream[40:])
    dispatcher.request(started.run)
    wait_until(lambda: derived_step(store, started.run) == 400)
    gate.set()
    dispatcher.stop()


def test_stopping_is_quick_and_what_is_left_waits_for_the_next_start(store):
    before = threading.enumerate()
    dispatcher = InlineDispatcher(store, sweep_seconds=60.0)
    dispatcher.start()
    time.sleep(0.05)
    threads = [thread for thread in threading.enumerate() if thread not in before]
    assert len(threads) == 4
    dispatcher.stop()  # which would not wait for the next sweep
    assert not any(thread.is_alive() for thread in threads)
    started = start(store)
    take_in(store, started, batches(numbers(16), started.session))
    dispatcher.request(started.run)
    assert derived_step(store, started.run) == 0
    InlineDispatcher(store).stop()  # one that was never started stops as well


def test_a_sweep_interval_of_zero_is_refused(store):
    with pytest.raises(ValueError, match="sweep_seconds must be above 0, got 0"):
        InlineDispatcher(store, sweep_seconds=0)


def test_the_sweep_requests_what_is_behind_and_marks_silent_runs_lost(store):
    class Requests(list):
        request = list.append

    done, left, silent = (start(store, now=now) for now in (1000.0, 1000.0, 900.0))
    for one in (done, left):
        take_in(store, one, batches(numbers(16), one.session), now=1000.0)
    derive(store, done.run)
    requests = Requests()
    told = []
    assert sweep(store, requests, 1010.0, told.append) == [left.run]
    assert requests == [left.run]
    assert told == [{"type": "run", "run": silent.run, "state": "lost"}]
    with store.read() as conn:
        assert [get_run(conn, one.run)["state"] for one in (done, left, silent)] == ["running", "running", "lost"]


def test_the_inline_dispatcher_derives_what_one_worker_by_hand_derives(store):
    by_hand, inline = start(store), start(store)
    take_in(store, by_hand, batches(faulty(), by_hand.session))
    derive(store, by_hand.run)
    dispatcher = InlineDispatcher(store, sweep_seconds=60.0)
    dispatcher.start()
    for batch in batches(faulty(), inline.session):
        take_in(store, inline, [batch])
        dispatcher.request(inline.run)
    wait_until(lambda: not _behind(store, inline.run))
    dispatcher.stop()
    assert outcome(store, inline.run) == outcome(store, by_hand.run)
    with store.read() as conn:
        assert len(list_alerts(conn, inline.run)[0]) == 3


def _behind(store, run: str) -> bool:
    with store.read() as conn:
        return behind(conn, run)
