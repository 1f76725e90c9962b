"""Retiring, whoever else does it and whenever it is killed: nothing goes that is not meant to."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from gradspectra_store.block_schema import compactions
from gradspectra_store.retention import DAY, NOTICE_DAYS, Retention, adopt_retention, due_runs
from gradspectra_store.runs import heartbeat, update_run
from gradspectra_store.schema import runs
from gradspectra_worker import dispatch
from gradspectra_worker import retain as module
from gradspectra_worker.dispatch import InlineDispatcher
from gradspectra_worker.retain import due, retain, retain_due
from store.batches import started
from store.retaining import KEPT, LATER, asked, fine_blocks, old_run, same, shown

pytestmark = pytest.mark.usefixtures("small_blocks")


def test_runs_that_go_on_are_pinned_or_young_are_never_touched(store):
    run = old_run(store)
    count = fine_blocks(store, run)

    def untouched(now: float = LATER, wanted: Retention = KEPT) -> bool:
        with store.read() as conn:
            listed = due_runs(conn, wanted, now)
        return listed == [] and retain(store, run, wanted, now) == 0 and fine_blocks(store, run) == count

    def change(**values: object) -> None:
        with store.write() as conn:
            conn.execute(sa.update(runs).values(**values))

    assert untouched(now=1000 + 29.9 * DAY)
    with store.write() as conn:
        update_run(conn, run, pinned=True)
    assert untouched()
    assert shown(store, run)["pinned"] is True
    with store.write() as conn:
        update_run(conn, run, pinned=False)
    change(state="running")
    assert untouched()
    change(state="failed", last_batch=runs.c.last_batch + 10**7)  # not all of it is derived
    assert untouched()
    change(last_batch=runs.c.last_batch - 10**7)
    with store.write() as conn:
        conn.execute(sa.update(compactions).values(batch=0))
    assert untouched()
    with store.write() as conn:
        conn.execute(sa.update(compactions).values(batch=10**6))
    other = started(store, resume=run, rank=1, now=LATER)
    change(state="lost", updated_at=1000.0)
    assert untouched()
    assert untouched(now=LATER + 59)
    with store.write() as conn:
        heartbeat(conn, run, other.session, None, LATER + 100)
    change(state="lost", updated_at=1000.0)
    assert untouched(now=LATER + 101)
    assert retain(store, run, KEPT, LATER + 200) > 0
    assert fine_blocks(store, run) < count


def test_a_run_that_is_resumed_meanwhile_is_left_alone(store, monkeypatch):
    run, next_layers = old_run(store), module.next_layers
    count = fine_blocks(store, run)

    def resumed(*given):
        made = next_layers(*given)
        started(store, resume=run, start_step=640)
        return made

    monkeypatch.setattr(module, "next_layers", resumed)
    assert retain(store, run, KEPT, LATER) == 0
    assert fine_blocks(store, run) == count
    assert shown(store, run)["state"] == "running"


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_nothing_goes_before_a_retention_was_in_force_for_a_fortnight(store):
    run = old_run(store)
    with store.write() as conn:
        adopt_retention(conn, KEPT, LATER)
    assert shown(store, run)["retires_at"] == LATER + NOTICE_DAYS * DAY
    assert retain_due(store, LATER + NOTICE_DAYS * DAY - 1) == 0
    with store.write() as conn:
        adopt_retention(conn, Retention(20.0, 1, 10), LATER + DAY)
    assert retain_due(store, LATER + NOTICE_DAYS * DAY) == 0
    assert retain_due(store, LATER + (NOTICE_DAYS + 1) * DAY) > 0
    assert shown(store, run)["retired_at"] == LATER + (NOTICE_DAYS + 1) * DAY


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_no_retention_was_ever_put_in_force_then_nothing_is_retired(store):
    old_run(store)
    assert due(store, 1e12) == (Retention(0.0), [])
    assert retain_due(store, 1e12) == 0


def test_two_at_once_beside_one_that_reads_take_away_what_one_would(store, monkeypatch):
    monkeypatch.setattr("gradspectra_store.retiring.CHUNK_BYTES", 2_000)
    run, expected = old_run(store), old_run(store)
    retain(store, expected, KEPT, LATER)
    whole = asked(store, expected, "grad_norm", columns=10_000)
    top = asked(store, run, "grad_norm", columns=10_000).max.max()
    done: list[int] = []
    workers = [
        threading.Thread(target=lambda: done.append(sum(retain(store, run, KEPT, LATER) for _ in range(5))))
        for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        now = asked(store, run, "grad_norm", columns=10_000)
        assert now.max.max() == top
        assert now.max.min() >= 1.0
    for worker in workers:
        worker.join()
    assert sum(done) > 1
    same(asked(store, run, "grad_norm", columns=10_000), whole)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_transaction_that_another_one_overtook_is_given_up(store, monkeypatch):
    monkeypatch.setattr("gradspectra_store.retiring.CHUNK_BYTES", 500)
    run, expected, next_layers = old_run(store), old_run(store), module.next_layers
    retain(store, expected, KEPT, LATER)

    def overtaken(*given):
        made = next_layers(*given)
        with monkeypatch.context() as patch:
            patch.setattr(module, "next_layers", next_layers)
            assert retain(store, run, KEPT, LATER) > 2
        return made

    monkeypatch.setattr(module, "next_layers", overtaken)
    assert retain(store, run, KEPT, LATER) == 0
    monkeypatch.setattr(module, "next_layers", next_layers)
    same(*(asked(store, one, "grad_norm", columns=10_000) for one in (run, expected)))


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_it_ends_the_same(store, url):
    run, expected = old_run(store, 3000), old_run(store, 3000)
    retain(store, expected, KEPT, LATER)
    whole = asked(store, expected, "grad_norm", columns=10_000)
    coarse = asked(store, run, "grad_norm", columns=300)
    before, chooser, script = fine_blocks(store, run), random.Random(3), Path(__file__).with_name("killed_retaining.py")
    stages = []
    for _ in range(4):
        process = subprocess.Popen([sys.executable, script, url, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"started\n"
        until = time.monotonic() + 30
        while fine_blocks(store, run) == (stages or [before])[-1] and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(chooser.uniform(0.0, 0.02))
        process.kill()
        process.communicate(timeout=60)
        stages.append(fine_blocks(store, run))
        same(asked(store, run, "grad_norm", columns=300), coarse)
    assert stages == sorted(stages, reverse=True)
    assert len(set(stages)) > 2  # killed in the middle
    assert stages[0] > stages[-1] > fine_blocks(store, expected)
    retain(store, run, KEPT, LATER)
    same(asked(store, run, "grad_norm", columns=10_000), whole)


def test_a_transaction_that_fails_leaves_nothing_behind(store, monkeypatch):
    run = old_run(store)
    count, before = fine_blocks(store, run), asked(store, run, "grad_norm", columns=10_000)

    def failing(*_):
        raise RuntimeError("the disk is on fire")

    with monkeypatch.context() as patch:
        patch.setattr("gradspectra_store.retiring.note_span", failing)
        with pytest.raises(RuntimeError, match="on fire"):
            retain(store, run, KEPT, LATER)
    assert fine_blocks(store, run) == count
    same(asked(store, run, "grad_norm", columns=10_000), before)
    assert retain(store, run, KEPT, LATER) > 0


def test_the_inline_dispatcher_retires_what_is_due_and_one_that_fails_holds_up_no_other(store, monkeypatch, caplog):
    broken, run = sorted(old_run(store) for _ in range(2))

    def failing(given, identity, *rest, **options):
        if identity == broken:
            raise RuntimeError("no luck")
        return retain(given, identity, *rest, **options)

    with store.write() as conn:
        adopt_retention(conn, KEPT, 0.0)
    monkeypatch.setattr(module, "retain", failing)
    dispatcher = InlineDispatcher(store, sweep_seconds=0.05, retain_seconds=0.1)
    dispatcher.start()
    until = time.monotonic() + 120
    while shown(store, run)["retired_at"] is None:
        assert time.monotonic() < until, "was not retired in time"
        time.sleep(0.02)
    dispatcher.stop()
    assert shown(store, broken)["retired_at"] is None
    assert f"retiring run {broken} failed" in caplog.text
    assert dispatch.RETAIN_TURNS > 0
