"""Deriving a run another time where something is in the way: retention, damage, layers that change, others at it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from gradspectra_core.layers import LayerTable
from gradspectra_store import Store
from gradspectra_store.block_schema import rederivations
from gradspectra_store.compaction import claim_round, rounds_of
from gradspectra_store.damaged import damaged
from gradspectra_store.errors import UnknownRun
from gradspectra_store.missing import missing_rows
from gradspectra_store.read import read_series
from gradspectra_store.rederivations import HEARD_SECONDS, CannotDeriveAgain, begin_again
from gradspectra_store.retention import Retention
from gradspectra_store.run_views import get_run
from gradspectra_store.runs import finish_run
from gradspectra_store.schema import derived_segments, segments
from gradspectra_worker.compact import compact
from gradspectra_worker.derive import derive
from gradspectra_worker.derive_again import derive_again
from gradspectra_worker.retain import retain
from store.spoiling import spoil
from worker.again import all_alerts, derived_run, nothing_beside, without_batch
from worker.synthetic import TABLE, batches, faulty, numbers, outcome, start, take_in


@pytest.mark.usefixtures("small_blocks")
def test_steps_that_retention_has_taken_are_named(store: Store, tmp_path: Path) -> None:
    run = derived_run(store, 640, compacted=True)
    with store.write() as conn:
        for session in conn.execute(sa.select(segments.c.session).where(segments.c.run == run).distinct()).scalars():
            finish_run(conn, run, session, "finished", 1.0)
    kept = Retention(days=1.0, level=1, spectra=10)
    assert retain(store, run, kept, 1e9)
    before = outcome(store, run)
    said = r"of steps 0 to 527 of attempt 1 only layer values in buckets of 8 steps and of steps 10 to 639 .* spectrum"
    with pytest.raises(CannotDeriveAgain, match=said):
        derive_again(store, run, tmp_path)
    assert outcome(store, run) == before


def test_a_run_retired_meanwhile_is_left_as_it_is(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = derived_run(store, 640, compacted=True)
    from gradspectra_store.swapping import Swap

    stage = Swap.stage

    def staged(swap: Swap) -> None:
        stage(swap)
        with store.write() as conn:
            session = conn.execute(sa.select(segments.c.session).where(segments.c.run == run).distinct()).scalar_one()
            finish_run(conn, run, session, "finished", 1.0)
        assert retain(store, run, Retention(days=1.0, level=1, spectra=10), 1e9)

    monkeypatch.setattr(Swap, "stage", staged)
    before = without_batch(outcome(store, run))["alerts"]
    with pytest.raises(CannotDeriveAgain, match="retention has left"):
        derive_again(store, run, tmp_path)
    assert without_batch(outcome(store, run))["alerts"] == before


def test_what_cannot_be_read_back_is_passed_over(store: Store, tmp_path: Path) -> None:
    for kind, lost, steps in (("layers", {74, 76, 78, 80}, 400), ("scalars", {74, 76, 78, 80}, 392)):
        run = derived_run(store)
        spoil(store, run, kind=kind, batch=10)
        assert derive_again(store, run, tmp_path).steps == steps
        with store.read() as conn:
            found = set(read_series(conn, run, ["signal_sq"], columns=1000).x.tolist())
        assert set(range(2, 401, 2)) - found == lost


def test_layers_that_change_come_out_the_same(store: Store, tmp_path: Path) -> None:
    fewer = LayerTable.of(list(TABLE.layers[:3]))
    other = LayerTable.of([TABLE.layers[3], *TABLE.layers[:2]])
    run = start(store).run
    for at, table in ((200, fewer), (400, other), (500, TABLE)):
        two = start(store, resume=run, start_step=at)
        take_in(store, two, batches(numbers(200, at, first=at + 1, table=table), two.session))
        derive(store, run)
    for compacted in (False, True):
        if compacted:
            compact(store, run)
        before = outcome(store, run)
        derive_again(store, run, tmp_path)
        assert without_batch(outcome(store, run)) == without_batch(before)


def test_layers_that_change_within_an_attempt_come_out_the_same(store: Store, tmp_path: Path) -> None:
    fewer = LayerTable.of(list(TABLE.layers[:3]))
    started = start(store)
    first = batches(numbers(200), started.session)
    second = batches(numbers(200, 1, first=201, table=fewer), started.session, sequence=len(first) + 1)
    third = batches(numbers(200, 2, first=401), started.session, sequence=2 * len(first) + 1)
    take_in(store, started, [*first, *second, *third])
    derive(store, started.run)
    compact(store, started.run)
    before = outcome(store, started.run)
    assert before["cursor"][0]["state"]["noise"]["names"] == list(TABLE.names)
    derive_again(store, started.run, tmp_path)
    assert without_batch(outcome(store, started.run)) == without_batch(before)


def test_ranks_of_other_processes_spectra_come_out_the_same(store: Store, tmp_path: Path) -> None:
    started = start(store)
    other = start(store, resume=started.run, rank=1)
    stream = batches(faulty(), started.session)
    take_in(store, started, stream)
    take_in(store, other, batches(numbers(360, 3, first=241), other.session))
    derive(store, started.run)
    before = without_batch(outcome(store, started.run))
    derive_again(store, started.run, tmp_path)
    assert without_batch(outcome(store, started.run)) == before


def test_an_attempt_without_steps_that_can_be_read_has_begun(store: Store, tmp_path: Path) -> None:
    run = derived_run(store, most=38)  # the spike at 301 is open
    two = start(store, resume=run, start_step=100)
    take_in(store, two, batches(numbers(8, first=101), two.session))
    derive(store, run)
    spoil(store, run, kind="scalars", attempt=2)
    derive_again(store, run, tmp_path)
    assert {one["superseded"] for one in all_alerts(store, run) if one["opened_step"] > 100} == {True}
    with store.read() as conn:
        shown = get_run(conn, run)
    assert shown is not None
    assert shown["derived_step"] == 108


def test_a_round_of_compaction_that_had_begun_gives_up(store: Store, tmp_path: Path) -> None:
    run = derived_run(store, compacted=True)
    with store.read() as conn:
        rounds = rounds_of(conn, run)
    derive_again(store, run, tmp_path)
    with store.write() as conn:
        assert not claim_round(conn, run, rounds)


def test_damage_of_what_was_derived_is_not_noted_any_more(store: Store, tmp_path: Path) -> None:
    run = derived_run(store)
    spoil(store, run, derived_segments, kind="scalars", batch=10)
    spoil(store, run, segments, kind="layers", batch=12)
    compact(store, run)
    with store.read() as conn:
        assert sorted(conn.execute(sa.select(damaged.c.derived)).scalars()) == [False, True]
    derive_again(store, run, tmp_path)
    with store.read() as conn:
        assert list(conn.execute(sa.select(damaged.c.derived)).scalars()) == [False]


def test_one_process_at_a_time(store: Store, tmp_path: Path) -> None:
    run = derived_run(store)
    with store.write() as conn:
        begin_again(conn, run, 1000.0)
    with store.write() as conn:
        conn.execute(sa.update(rederivations).values(heard_at=time.time()))
    with pytest.raises(CannotDeriveAgain, match=r"by another process, heard of \d s ago; wait for it, or, if it was"):
        derive_again(store, run, tmp_path)
    with store.write() as conn:
        conn.execute(sa.update(rederivations).values(heard_at=time.time() - HEARD_SECONDS))
    derive_again(store, run, tmp_path)


def test_a_process_that_lost_the_run_changes_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = derived_run(store)
    before = outcome(store, run)
    from gradspectra_store.swapping import Swap

    stage = Swap.stage

    def staged(swap: Swap) -> None:
        stage(swap)
        with store.write() as conn:
            begin_again(conn, run, 1e12)

    monkeypatch.setattr(Swap, "stage", staged)
    with pytest.raises(CannotDeriveAgain, match="another process has begun to derive it again"):
        derive_again(store, run, tmp_path)
    assert outcome(store, run) == before
    monkeypatch.undo()
    with store.write() as conn:
        assert conn.execute(sa.select(rederivations.c.state)).scalar_one() == "working"
        conn.execute(sa.update(rederivations).values(heard_at=0.0))
    derive_again(store, run, tmp_path)
    assert nothing_beside(store, run)


def test_a_run_that_is_not_there_is_said(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UnknownRun):
        derive_again(store, "nosuchrun", tmp_path)


@pytest.mark.parametrize("url", ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)
def test_killed_at_any_moment_the_run_is_as_it_was_or_as_it_is_to_be(store: Store, url: str, tmp_path: Path) -> None:
    run = derived_run(store, 1400, compacted=True)
    before = without_batch(outcome(store, run))
    ended, seconds = False, 0.4
    while not ended:
        with store.write() as conn:
            conn.execute(sa.update(rederivations).values(heard_at=0.0))
        script = Path(__file__).with_name("killed_deriving_again.py")
        process = subprocess.Popen([sys.executable, script, url, run, tmp_path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        time.sleep(seconds)
        seconds += 0.5
        process.kill()
        process.wait(60)
        ended = process.stdout.read() == b"done\n"
        process.stdout.close()
        assert without_batch(outcome(store, run)) == before
    with store.write() as conn:
        conn.execute(sa.update(rederivations).values(heard_at=0.0))
    derive_again(store, run, tmp_path)
    assert without_batch(outcome(store, run)) == before
    assert not list(tmp_path.glob("gradspectra-*"))
    assert nothing_beside(store, run)
    with store.read() as conn:
        assert missing_rows(conn) == []
