"""Retiring, whoever else does it and whenever it is killed: nothing goes that is not meant to."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from gradspectra_store.retention import adopt_retention
from gradspectra_worker import dispatch
from gradspectra_worker import retain as module
from gradspectra_worker.dispatch import InlineDispatcher
from gradspectra_worker.retain import retain
from store.retaining import KEPT, LATER, asked, fine_blocks, old_run, same, shown

pytestmark = pytest.mark.usefixtures("small_blocks")


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
        process.communicate(timeout=10)
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
    until = time.monotonic() + 30
    while shown(store, run)["retired_at"] is None:
        assert time.monotonic() < until, "was not retired in time"
        time.sleep(0.02)
    dispatcher.stop()
    assert shown(store, broken)["retired_at"] is None
    assert f"retiring run {broken} failed" in caplog.text
    assert dispatch.RETAIN_TURNS > 0
