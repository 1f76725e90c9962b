"""Compacting behind ingest: by whom and how often it is done, and whenever it is killed, no answer changes."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_store import Store, engines
from gradspectra_store.block_schema import blocks
from gradspectra_store.compaction import compactable_runs
from gradspectra_store.derived import behind
from gradspectra_store.errors import StoreFull
from gradspectra_store.read import read_layers, read_series
from gradspectra_store.run_views import get_run
from gradspectra_store.runs import heartbeat, mark_lost
from gradspectra_store.schema import derived_segments, segments
from gradspectra_worker import compact as module
from gradspectra_worker import dispatch
from gradspectra_worker.compact import compact
from gradspectra_worker.derive import derive
from gradspectra_worker.dispatch import InlineDispatcher
from worker.synthetic import batches, faulty, numbers, outcome, start, take_in

ON_THE_OTHER_DATABASE_IN_THE_SLOW_SUITE = pytest.mark.parametrize(
    "url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True
)
"""What one process does for itself, it does on SQLite unless told otherwise."""
MEASURED = ("loss", "grad_norm", "parts")


def answers(store: Store, run: str) -> list[np.ndarray]:
    """What was measured, at three zooms."""
    found = []
    with store.read() as conn:
        for columns in (5, 50, 10_000):
            series = read_series(conn, run, MEASURED, columns=columns)
            found += [series.x, *(getattr(series.series[name], part) for name in MEASURED for part in ("mean", "last"))]
            for name in ("grad_norm", "weight_sq", "grad_nonfinite"):
                layers = read_layers(conn, run, name, columns=columns)
                found += [layers.x, layers.mean, layers.min, layers.max]
    return found


def left(store: Store, run: str) -> int:
    """How many segments of scalars and layers there are."""
    with store.read() as conn:
        return sum(
            conn.execute(
                sa.select(sa.func.count()).where(table.c.run == run, table.c.kind.in_(("scalars", "layers")))
            ).scalar_one()
            for table in (segments, derived_segments)
        )


def derived_run(store: Store) -> str:
    started = start(store)
    take_in(store, started, batches(faulty(), started.session))
    derive(store, started.run)
    return started.run


def test_a_compacted_run_answers_as_before_with_few_segments_left(store):
    run = derived_run(store)
    before, derived = answers(store, run), outcome(store, run)
    assert left(store, run) == 240
    assert compact(store, run) == 4  # scalars and layers, measured and derived
    assert left(store, run) == 37
    np.testing.assert_equal(answers(store, run), before)
    assert outcome(store, run) == derived
    assert compact(store, run) == 0
    with store.read() as conn:
        assert compactable_runs(conn) == []


def test_a_run_goes_on_after_it_was_compacted_also_when_it_was_lost(store):
    started, undisturbed = start(store), start(store)
    stream = batches(faulty(), started.session)
    for one in (started, undisturbed):
        for batch in stream:
            take_in(store, one, [batch], now=100.0)
            derive(store, one.run)
            if one is started and batch.sequence % 16 == 0:
                with store.write() as conn:
                    mark_lost(conn, 1e6 * batch.sequence)
                compact(store, one.run)
                with store.write() as conn:
                    assert get_run(conn, one.run)["state"] == "lost"
                    heartbeat(conn, one.run, one.session, None, 1e6 * batch.sequence + 1)
                    assert get_run(conn, one.run)["state"] == "running"
    assert left(store, started.run) < 80
    np.testing.assert_equal(answers(store, started.run), answers(store, undisturbed.run))
    assert outcome(store, started.run)["numbers"] == outcome(store, undisturbed.run)["numbers"]
    assert outcome(store, started.run)["alerts"] == outcome(store, undisturbed.run)["alerts"]


def test_two_that_compact_at_once_while_batches_come_and_are_derived(store, monkeypatch):
    monkeypatch.setattr("gradspectra_store.compaction.CHUNK_BYTES", 6_000)
    expected, started = derived_run(store), start(store)
    finished, rounds = threading.Event(), []

    def derive_on() -> None:
        while not finished.is_set() or _behind(store, started.run):
            derive(store, started.run, chunk=2)

    def compact_on() -> None:
        done = 0
        while not finished.is_set() or _behind(store, started.run) or _due(store, started.run):
            done += compact(store, started.run)
        rounds.append(done)

    workers = [threading.Thread(target=work) for work in (derive_on, compact_on, compact_on)]
    for worker in workers:
        worker.start()
    for batch in batches(faulty(), started.session):
        take_in(store, started, [batch])
    finished.set()
    for worker in workers:
        worker.join(60)
    assert sum(rounds) > 10
    assert left(store, started.run) == 37
    np.testing.assert_equal(answers(store, started.run), answers(store, expected))
    assert outcome(store, started.run)["numbers"] == outcome(store, expected)["numbers"]


def _behind(store: Store, run: str) -> bool:
    with store.read() as conn:
        return behind(conn, run)


def _due(store: Store, run: str) -> bool:
    with store.read() as conn:
        return run in compactable_runs(conn)


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_it_loses_and_doubles_nothing(store, url):
    run = derived_run(store)
    before, derived = answers(store, run), outcome(store, run)
    chooser, script = random.Random(7), Path(__file__).with_name("killed_compacting.py")
    stages = [left(store, run)]
    for attempt in range(8):
        process = subprocess.Popen([sys.executable, script, url, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"started\n"
        until = time.monotonic() + 30
        while attempt % 2 and left(store, run) == stages[-1] and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(chooser.uniform(0.0, 0.02))
        process.kill()
        process.communicate(timeout=60)
        stages.append(left(store, run))
        np.testing.assert_equal(answers(store, run), before)
    assert stages == sorted(stages, reverse=True)
    assert len(set(stages)) > 3  # killed in the middle
    compact(store, run)
    assert left(store, run) == 37
    np.testing.assert_equal(answers(store, run), before)
    assert outcome(store, run) == derived


def test_a_round_that_fails_leaves_nothing_behind(store, monkeypatch):
    run = derived_run(store)
    before = answers(store, run)

    def failing(conn, made):
        assert write_round(conn, made)
        raise RuntimeError("the disk is on fire")

    write_round = module.write_round
    monkeypatch.setattr(module, "write_round", failing)
    with pytest.raises(RuntimeError, match="on fire"):
        compact(store, run)
    assert left(store, run) == 240
    with store.read() as conn:
        assert conn.execute(sa.select(sa.func.count()).select_from(blocks)).scalar_one() == 0
    monkeypatch.undo()
    assert compact(store, run) == 4
    np.testing.assert_equal(answers(store, run), before)


@ON_THE_OTHER_DATABASE_IN_THE_SLOW_SUITE
def test_the_inline_dispatcher_compacts_what_it_derived(store):
    started = start(store)
    dispatcher = InlineDispatcher(store, sweep_seconds=0.05)
    dispatcher.start()
    for batch in batches(numbers(400), started.session):
        take_in(store, started, [batch])
        dispatcher.request(started.run)
    until = time.monotonic() + 120
    while left(store, started.run) != 37:
        assert time.monotonic() < until, "was not compacted in time"
        time.sleep(0.02)
    dispatcher.stop()
    other = start(store)
    take_in(store, other, batches(numbers(400), other.session))
    derive(store, other.run)
    np.testing.assert_equal(answers(store, started.run), answers(store, other.run))


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_full_disk_stops_compaction_without_harm_until_there_is_space(store, url, monkeypatch):
    run = derived_run(store)
    before = answers(store, run)
    with store.read() as conn:
        pages = conn.exec_driver_sql("PRAGMA page_count").scalar_one()
    with monkeypatch.context() as patch:
        patch.setattr(engines, "_PRAGMAS", (*engines._PRAGMAS, f"max_page_count={pages}"))
        full = Store.open(url)
        with pytest.raises(StoreFull, match="full"):
            compact(full, run)
        full.close()
    np.testing.assert_equal(answers(store, run), before)
    compact(store, run)
    assert left(store, run) == 37
    np.testing.assert_equal(answers(store, run), before)


@ON_THE_OTHER_DATABASE_IN_THE_SLOW_SUITE
def test_a_run_that_cannot_be_compacted_holds_up_no_other(store, monkeypatch, caplog):
    runs = sorted(derived_run(store) for _ in range(2))

    def failing(given, run, **options):
        if run == runs[0]:
            raise RuntimeError("no luck")
        return compact(given, run, **options)

    monkeypatch.setattr(dispatch, "compact", failing)
    dispatcher = InlineDispatcher(store, sweep_seconds=0.05)
    dispatcher.start()
    until = time.monotonic() + 120
    while left(store, runs[1]) != 37:
        assert time.monotonic() < until, "was not compacted in time"
        time.sleep(0.02)
    dispatcher.stop()
    assert left(store, runs[0]) == 240
    assert f"compacting run {runs[0]} failed" in caplog.text
