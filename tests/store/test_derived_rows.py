"""What the worker relies on: the order of batches, the watermark, claims, and derived rows that replace themselves."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_core.records import Columns
from gradspectra_store import Store
from gradspectra_store.derived import (
    DerivedBatch,
    advance,
    behind,
    claim,
    dirty_runs,
    pending,
    save_derived,
)
from gradspectra_store.ingest import ingest
from gradspectra_store.read import read_series, series_names
from gradspectra_store.run_views import get_run
from gradspectra_store.runs import finish_run, heartbeat
from gradspectra_store.schema import derived_segments, segments
from store.batches import TABLE, a_batch, layer_block, started, stored


def numbers(store: Store, run: str, after: int = 0, limit: int = 100, now: float = 1001.0) -> list[int]:
    with store.read() as conn:
        return [found.batch_number for found in pending(conn, run, after, limit, now)]


def test_a_cursor_goes_on_where_it_was_left(store: Store) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1, 2]))
    with store.read() as conn:
        assert dirty_runs(conn) == [run.run]
        assert behind(conn, run.run, 1001.0)
    with store.write() as conn:
        cursor = claim(conn, run.run)
        assert cursor is not None
        assert (cursor.batch, cursor.attempt, cursor.derived_step, cursor.state) == (0, 1, 0, None)
        cursor.batch, cursor.derived_step, cursor.state = 1, 2, {"x": [1.5, float("inf")]}
        advance(conn, run.run, cursor)
    with store.write() as conn:
        assert claim(conn, run.run) == cursor
    with store.read() as conn:
        assert dirty_runs(conn) == []
        assert not behind(conn, run.run, 1001.0)
        shown = get_run(conn, run.run)
    assert shown is not None
    assert shown["derived_step"] == 2


def test_a_run_that_is_gone_is_neither_claimed_nor_behind(store: Store) -> None:
    with store.write() as conn:
        assert claim(conn, "nosuchrun") is None
        assert not behind(conn, "nosuchrun")


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)  # SQLite has one writer at a time
def test_a_claimed_run_is_passed_over_and_takes_batches_meanwhile(store: Store) -> None:
    run = started(store)
    with store.write() as holder:
        assert claim(holder, run.run) is not None
        save_derived(holder, run.run, [DerivedBatch(1, 1, None)])
        with store.write() as other:
            assert claim(other, run.run) is None
            assert ingest(other, run.run, a_batch(run.session, 1, [1]), 1001.0).batch == 1


def test_batches_are_numbered_in_the_order_they_are_committed(store: Store) -> None:
    run = started(store)
    sessions = [run.session, *(started(store, resume=run.run, rank=rank).session for rank in (1, 2))]
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.extend(numbers(store, run.run, after=seen[-1] if seen else 0, now=9e9))

    def send(session: str) -> None:
        for sequence in range(1, 16):
            stored(store, run.run, a_batch(session, sequence, [sequence]))

    watcher = threading.Thread(target=watch)
    senders = [threading.Thread(target=send, args=(session,)) for session in sessions]
    for thread in (watcher, *senders):
        thread.start()
    for thread in senders:
        thread.join()
    done.set()
    watcher.join()
    seen += numbers(store, run.run, after=seen[-1] if seen else 0, now=9e9)
    assert seen == list(range(1, 46))


def test_pending_gives_at_most_what_was_asked_for(store: Store) -> None:
    run = started(store)
    for sequence in range(1, 6):
        stored(store, run.run, a_batch(run.session, sequence, [sequence]))
    assert numbers(store, run.run, after=1, limit=3) == [2, 3, 4]


def test_pending_reads_no_further_than_the_batch_with_the_last_step_asked_for(store: Store) -> None:
    run = started(store)
    for sequence in range(1, 6):
        stored(store, run.run, a_batch(run.session, sequence, [3 * sequence - 2, 3 * sequence - 1, 3 * sequence]))
    with store.read() as conn:
        for steps, expected in ((1, [1]), (3, [1]), (4, [1, 2]), (9, [1, 2, 3]), (100, [1, 2, 3, 4, 5])):
            found = pending(conn, run.run, 0, 100, 1001.0, steps=steps)
            assert [batch.batch_number for batch in found] == expected


def test_pending_reads_no_more_than_a_bounded_number_of_bytes_but_one_batch(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(store)
    for sequence in range(1, 5):
        stored(store, run.run, a_batch(run.session, sequence, [sequence]))
    with store.read() as conn:
        sizes = conn.execute(sa.select(sa.func.length(segments.c.payload)).order_by(segments.c.batch)).scalars().all()
    for most, expected in ((1, [1]), (sizes[0], [1]), (sizes[0] + 1, [1, 2]), (sum(sizes) - 1, [1, 2, 3, 4])):
        monkeypatch.setattr("gradspectra_store.derived.PENDING_BYTES", most)
        assert numbers(store, run.run) == expected


def test_a_batch_waits_for_what_other_live_sessions_have_not_completed(store: Store) -> None:
    run = started(store)
    other = started(store, resume=run.run, rank=1)
    stored(store, run.run, a_batch(run.session, 1, [1, 2]))
    assert numbers(store, run.run) == [1]  # the other has sent nothing yet
    stored(store, run.run, a_batch(other.session, 1, [1, 2], complete_through=1))
    assert numbers(store, run.run) == []
    with store.read() as conn:
        assert not behind(conn, run.run, 1001.0)
        assert dirty_runs(conn) == [run.run]
    stored(store, run.run, a_batch(other.session, 2, [3], complete_through=3))
    assert numbers(store, run.run) == [1, 2]
    stored(store, run.run, a_batch(run.session, 2, [3]))
    assert numbers(store, run.run) == [1, 2, 3, 4]


@pytest.mark.parametrize("end", ["silent", "finished"])
def test_a_session_that_is_silent_or_over_holds_nothing_up(store: Store, end: str) -> None:
    run = started(store)
    other = started(store, resume=run.run, rank=1)
    stored(store, run.run, a_batch(other.session, 1, [1], complete_through=1), now=1001.0)
    stored(store, run.run, a_batch(run.session, 1, [1, 2]), now=1030.0)
    assert numbers(store, run.run, now=1060.0) == [1]
    if end == "finished":
        with store.write() as conn:
            finish_run(conn, run.run, other.session, "finished", 1060.0)
        assert numbers(store, run.run, now=1060.0) == [1, 2]
        return
    assert numbers(store, run.run, now=1062.0) == [1, 2]
    with store.write() as conn:
        heartbeat(conn, run.run, other.session, None, 1062.0)
    assert numbers(store, run.run, now=1062.0) == [1]


def test_an_older_attempt_holds_nothing_up(store: Store) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1, 2], complete_through=1))
    again = started(store, resume=run.run)
    stored(store, run.run, a_batch(run.session, 2, [3], complete_through=3))
    stored(store, run.run, a_batch(again.session, 1, [1, 2, 3, 4, 5]))
    assert numbers(store, run.run) == [1, 2, 3]


def test_a_batch_comes_back_as_it_was_sent(store: Store) -> None:
    run = started(store)
    block = layer_block([2], {"grad_sq": np.array([[1, 2, 3]])})
    sent = a_batch(run.session, 1, [1, 2], layer_table=TABLE, layers=block)
    stored(store, run.run, sent)
    with store.read() as conn:
        found = pending(conn, run.run, 0, 1, 1001.0)[0]
    assert (found.batch_number, found.attempt, found.session, found.rank) == (1, 1, run.session, 0)
    assert found.batch.layer_table == TABLE
    assert found.batch.layers is not None
    assert found.batch.layers.statistics == ("grad_sq",)
    np.testing.assert_array_equal(found.batch.layers.values, block.values)
    np.testing.assert_array_equal(found.batch.times, sent.times)


def test_derived_rows_saved_twice_are_there_once(store: Store) -> None:
    run = started(store)
    stored(store, run.run, a_batch(run.session, 1, [1, 2]))
    for value in (1.0, 2.0):
        with store.write() as conn:
            columns = Columns(("signal_sq",), np.full((1, 2), value), np.ones((1, 2), np.bool_))
            save_derived(conn, run.run, [DerivedBatch(1, 1, (np.array([1, 2]), columns))])
        with store.read() as conn:
            assert read_series(conn, run.run, ["signal_sq"]).series["signal_sq"].mean.tolist() == [value, value]
            assert series_names(conn, run.run) == ["loss", "signal_sq"]


def test_rows_of_several_batches_replace_theirs_and_leave_the_others(store: Store) -> None:
    run = started(store)
    for batch in (1, 2, 3, 4):
        stored(store, run.run, a_batch(run.session, batch, [batch]))

    def of(batch: int, value: float) -> DerivedBatch:
        columns = Columns(("signal_sq",), np.full((1, 1), value), np.ones((1, 1), np.bool_))
        return DerivedBatch(1, batch, (np.array([batch]), columns), [layer_block([batch], {"ratio": [[value] * 3]})])

    for rows in ([of(1, 1.0), of(2, 1.0), of(3, 1.0), of(4, 1.0)], [of(2, 2.0), DerivedBatch(1, 3, None)], []):
        with store.write() as conn:
            save_derived(conn, run.run, rows)
    with store.read() as conn:
        signal = read_series(conn, run.run, ["signal_sq"])
        kinds = conn.execute(sa.select(derived_segments.c.batch, derived_segments.c.kind)).all()
        assert (signal.x.tolist(), signal.series["signal_sq"].mean.tolist()) == ([1, 2, 4], [1.0, 2.0, 1.0])
    assert sorted(map(tuple, kinds)) == [(batch, kind) for batch in (1, 2, 4) for kind in ("layers", "scalars")]
