"""What a database says that other programs, or a restore of a part, have been at."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.agreeing import disagreements, make_agree
from gradspectra_store.read import read_series
from gradspectra_store.run_views import get_run
from gradspectra_store.schema import attempts, cursors, runs, segments
from store.batches import a_batch, started, stored
from store.compacting import a_plain_run, compacted


def told(store: Store) -> list[str]:
    with store.read() as conn:
        return disagreements(conn)


def test_runs_that_live_and_are_compacted_agree(store: Store) -> None:
    run = a_plain_run(store, 200)
    with store.write() as conn:
        conn.execute(sa.update(cursors).values(batch=sa.select(runs.c.last_batch).scalar_subquery()))
    compacted(store, run)
    young = started(store)
    stored(store, young.run, a_batch(young.session, 1, [1, 2]))
    assert told(store) == []
    with store.write() as conn:
        assert make_agree(conn) == 0


def test_a_run_without_a_watermark_is_told_and_shown_again(store: Store) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1, 2]))
    with store.write() as conn:
        conn.execute(sa.delete(cursors))
        assert get_run(conn, run.run) is None
    assert told(store) == [f"run {run.run} has no watermark, and is not shown"]
    with store.write() as conn:
        assert make_agree(conn) == 1
        shown = get_run(conn, run.run)
    assert shown is not None
    assert (shown["last_step"], shown["derived_step"], told(store)) == (2, 2, [])
    stored(store, run.run, a_batch(run.session, 2, [3]))


def test_what_only_a_backup_can_mend_is_told(store: Store) -> None:
    lost, ahead, behind = started(store), started(store), started(store)
    for one in (lost, ahead, behind):
        for sequence in (1, 2, 3):
            stored(store, one.run, a_batch(one.session, sequence, [sequence]))
    with store.write() as conn:
        conn.execute(sa.delete(attempts).where(attempts.c.run == lost.run))
        conn.execute(sa.update(cursors).where(cursors.c.run == ahead.run).values(batch=9))
        conn.execute(sa.delete(segments).where(segments.c.run == behind.run, segments.c.batch == 2))
    assert set(told(store)) == {
        f"run {lost.run} has nothing of its attempt 1, and is not shown",
        f"run {ahead.run} is derived up to batch 9, and has only 3",
        f"of the 3 batches of run {behind.run} that are not derived yet 2 are there",
    }
    with store.write() as conn:
        assert make_agree(conn) == 0


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_rows_of_runs_that_another_program_deleted_are_told_and_deleted(store: Store) -> None:
    run, other = a_plain_run(store, 64), a_plain_run(store, 64)
    with store.write() as conn:
        conn.execute(sa.update(cursors).values(batch=4))
    with sa.create_engine(store.url).begin() as conn:  # foreign keys are not looked at, as in most programs
        conn.execute(sa.delete(runs).where(runs.c.id == run))
    assert "8 rows of segments are of runs that are gone" in told(store)
    with store.write() as conn:
        assert make_agree(conn) > 8
    assert told(store) == []
    with store.read() as conn:
        assert get_run(conn, other) is not None


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_a_segment_whose_run_the_disk_has_changed_goes_back_to_that_of_its_session(store: Store) -> None:
    run = a_plain_run(store, 64)
    with store.write() as conn:
        conn.execute(sa.update(cursors).values(batch=4))
    with sa.create_engine(store.url).begin() as conn:
        changed = segments.c.batch == 2, segments.c.kind == "scalars"
        conn.execute(sa.update(segments).where(*changed).values(run="of nobody"))
    assert told(store) == ["1 rows of segments are of runs that are gone"]
    with store.write() as conn:
        assert make_agree(conn) == 1
    assert told(store) == []
    with store.read() as conn:
        assert read_series(conn, run, ["loss"]).x.tolist() == list(range(1, 65))
