"""Rows that are gone are told, and written again where what is left says what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.agreeing import disagreements, make_agree
from gradspectra_store.block_schema import blocks, extents
from gradspectra_store.checking import check_blocks, check_segments
from gradspectra_store.read import read_series
from gradspectra_store.retention_schema import retired
from gradspectra_store.schema import cursors, names, runs, segments
from gradspectra_store.segments import checksum_of
from store.batches import TABLE, a_batch, layer_block, spectrum_block, started, stored
from store.compacting import a_plain_run, a_varied_run, compacted, derived_through


@pytest.fixture
def run(store: Store) -> str:
    """3,000 steps, of which the last 56 are in segments."""
    run = a_plain_run(store, 3000)
    with store.write() as conn:
        conn.execute(sa.update(cursors).values(batch=sa.select(runs.c.last_batch).scalar_subquery()))
    compacted(store, run)
    return run


def told(store: Store) -> list[str]:
    with store.read() as conn:
        return disagreements(conn)


def lost_blocks(store: Store) -> list[tuple[Any, ...]]:
    found = check_blocks(store, 60.0).damaged
    assert all(one.misfit is not None and one.misfit.why == "is gone" for one in found)
    return [(one.name, one.level, one.first_step, one.last_step) for one in found]


def without_block(store: Store, run: str, name: str, number: int) -> tuple[int, int]:
    """Delete a block of numbers as recorded; returns the first and last step that it had."""
    own = blocks.c.run == run, blocks.c.name == name, blocks.c.level == 0
    with store.write() as conn:
        rows = conn.execute(sa.select(blocks.c.id, blocks.c.first, blocks.c.stop).where(*own).order_by(blocks.c.first))
        row = rows.all()[number]
        conn.execute(sa.delete(blocks).where(blocks.c.id == row.id))
    return row.first, row.stop - 1


@pytest.mark.parametrize("number", [0, 2, -1])
@pytest.mark.parametrize("name", ["loss", "grad_sq"])
def test_a_block_that_is_gone_is_told_by_the_buckets_above_it(store: Store, run: str, name: str, number: int) -> None:
    assert (told(store), lost_blocks(store)) == ([], [])
    first, last = without_block(store, run, name, number)
    ((own, level, begin, end),) = lost_blocks(store)
    assert (own, level) == (name, 0)
    assert abs(begin - first) <= 8
    assert abs(end - last) <= 8


def test_times_that_are_gone_are_told_once(store: Store, run: str) -> None:
    without_block(store, run, "", 1)
    ((name, _, first, last),) = lost_blocks(store)
    assert (name, first, last) == ("times", 512, 1023)


def test_numbers_too_sparse_for_the_finest_buckets_are_looked_for_below_the_next(store: Store) -> None:
    run = a_plain_run(store, 9000, every=20, size=60)
    compacted(store, run)
    assert lost_blocks(store) == []
    first, last = without_block(store, run, "grad_sq", 0)
    ((_, _, begin, end),) = lost_blocks(store)
    assert (begin <= first, abs(end - last) <= 64) == (True, True)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_gone_of_a_run_with_gaps_attempts_and_ranks(store: Store, seed: int) -> None:
    run, *_ = a_varied_run(store, np.random.default_rng(seed), 700)
    with store.write() as conn:
        conn.execute(sa.update(cursors).values(batch=sa.select(runs.c.last_batch).scalar_subquery()))
    assert told(store) == []
    assert check_segments(store, 60.0).damaged == ()
    for turns in (1, 1, 1, 2, 10**6):
        compacted(store, run, turns)
        assert (told(store), lost_blocks(store), check_segments(store, 60.0).damaged) == ([], [], ())


def test_a_batch_that_is_gone_is_told_with_the_steps_about_it(store: Store, run: str) -> None:
    with store.write() as conn:
        batches = conn.execute(sa.select(segments.c.batch).where(segments.c.run == run).distinct()).scalars().all()
        conn.execute(sa.delete(segments).where(segments.c.batch == sorted(batches)[1]))
    first = 3000 - 3000 % 16 - 16 * (len(batches) - 2)
    assert told(store) == [f"run {run} has lost a batch of attempt 1 between steps {first} and {first + 17}"]


def test_a_damaged_segment_that_was_looked_past_makes_no_gap(store: Store) -> None:
    run = started(store)
    for sequence in range(1, 21):
        steps = range(16 * sequence - 15, 16 * sequence + 1)
        stored(store, run.run, a_batch(run.session, sequence, list(steps)))
    derived_through(store, run.run)
    with store.write() as conn:
        conn.execute(sa.update(cursors).values(batch=20))
        conn.execute(sa.update(segments).where(segments.c.batch == 3).values(payload=b"lost"))
    compacted(store, run.run)
    assert told(store) == []


def test_names_and_extents_that_are_gone_are_written_again(store: Store, run: str) -> None:
    def answer() -> Any:
        with store.read() as conn:
            found = read_series(conn, run, ["loss"], columns=50)
            reach = conn.execute(sa.select(extents).order_by(extents.c.kind)).all()
        return {name: own.mean.tolist() for name, own in found.series.items()}, reach

    before = answer()
    with store.write() as conn:
        conn.execute(sa.delete(names).where(names.c.name == "loss"))
        conn.execute(sa.delete(extents))
    assert answer() != before
    assert told(store) == [
        f"run {run} does not know that it has loss",
        f"run {run} does not know how far it is compacted",
    ]
    with store.write() as conn:
        assert make_agree(conn) == 3
    assert (answer(), told(store)) == (before, [])


def run_of_all_kinds(store: Store, batches: int = 8) -> str:
    """Batches of 16 steps, layers at 15 of them, and a spectrum, the last alone without; all are taken for derived."""
    begun = started(store)
    for sequence in range(1, batches + 1):
        steps = list(range(16 * sequence - 15, 16 * sequence + 1))
        parts: dict[str, Any] = {}
        if sequence < batches:
            values = {"grad_sq": np.ones((15, len(TABLE)), np.float32)}
            parts = {"layers": layer_block(steps[:15], values), "spectra": spectrum_block([(steps[0], 1)])}
        stored(store, begun.run, a_batch(begun.session, sequence, steps, layer_table=TABLE, **parts))
    derived_through(store, begun.run)
    with store.write() as conn:
        conn.execute(sa.update(cursors).values(batch=batches))
    return begun.run


def without_segment(store: Store, run: str, kind: str, batch: int) -> None:
    with store.write() as conn:
        own = segments.c.run == run, segments.c.kind == kind, segments.c.batch == batch
        assert conn.execute(sa.delete(segments).where(*own)).rowcount == 1


def lost_segments(store: Store) -> list[tuple[str, int, int]]:
    found = check_segments(store, 60.0).damaged
    assert all(one.misfit is not None and one.misfit.why == "is gone" for one in found)
    return [(one.name, one.first_step, one.last_step) for one in found]


@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("kind", ["layers", "spectra"])
def test_a_segment_that_is_gone_beside_its_batch_is_told(store: Store, kind: str, batch: int) -> None:
    run = run_of_all_kinds(store)
    assert (lost_segments(store), told(store)) == ([], [])
    without_segment(store, run, kind, batch)
    assert (lost_segments(store), told(store)) == ([(f"{kind} (segment)", 16 * batch - 15, 16 * batch)], [])


def test_what_was_compacted_or_retired_is_not_gone(store: Store) -> None:
    run = run_of_all_kinds(store, 19)
    compacted(store, run, 1)  # the scalars alone
    compacted(store, run, 10**6)
    assert lost_segments(store) == []
    with store.read() as conn:
        left = conn.execute(sa.select(segments.c.kind, segments.c.batch).where(segments.c.kind != "spectra")).all()
    assert sorted(left) == [
        ("layers", 17),
        ("layers", 18),
        *(("scalars", one) for one in range(16, 20)),
    ]
    without_segment(store, run, "layers", 17)
    without_segment(store, run, "spectra", 18)
    assert sorted(lost_segments(store)) == [("layers (segment)", 257, 272), ("spectra (segment)", 273, 288)]
    place = {"run": run, "kind": "spectra", "derived": False, "attempt": 1, "rank": 0}
    with store.write() as conn:
        conn.execute(sa.insert(retired).values(**place, name="", width=8, first=0, stop=304))
    assert lost_segments(store) == [("layers (segment)", 257, 272)]


def test_a_batch_from_before_it_was_told_what_belongs_to_it_is_whole(store: Store) -> None:
    run = run_of_all_kinds(store)
    with store.write() as conn:
        own = segments.c.kind == "scalars", segments.c.batch == 2
        payload = bytes(conn.execute(sa.select(segments.c.payload).where(*own)).scalar_one())
        old = payload.replace(b"beside", b"behind")
        assert old != payload
        conn.execute(sa.update(segments).where(*own).values(payload=old, checksum=checksum_of(old)))
    without_segment(store, run, "layers", 2)
    assert lost_segments(store) == []


@pytest.mark.parametrize("batches", [1, 2])
def test_the_newest_batches_that_are_gone_are_told(store: Store, run: str, batches: int) -> None:
    with store.write() as conn:
        query = sa.select(segments.c.batch).where(segments.c.kind == "scalars").order_by(segments.c.batch.desc())
        newest = list(conn.execute(query).scalars())
        conn.execute(sa.delete(segments).where(segments.c.batch.in_(newest[:batches])))
    before = 3000 - 3000 % 16 - 16 * (batches - 1)
    assert told(store) == [f"run {run} has lost what came after step {before} of a session of attempt 1, rank 0"]


def test_all_batches_left_in_segments_that_are_gone_are_told_by_what_is_compacted(store: Store, run: str) -> None:
    with store.write() as conn:
        conn.execute(sa.delete(segments))
        reach = conn.execute(sa.select(extents.c.last_step).where(extents.c.kind == "scalars")).scalars().first()
    assert told(store) == [f"run {run} has lost what came after step {reach} of a session of attempt 1, rank 0"]


def test_a_session_of_which_nothing_is_left_is_told(store: Store) -> None:
    run = run_of_all_kinds(store)
    with store.write() as conn:
        conn.execute(sa.delete(segments))
    assert told(store) == [f"run {run} has lost all that it had of a session of attempt 1, rank 0"]


def test_a_batch_that_is_not_derived_is_told_once(store: Store) -> None:
    run = run_of_all_kinds(store)
    with store.write() as conn:
        conn.execute(sa.update(cursors).values(batch=7))
        conn.execute(sa.delete(segments).where(segments.c.batch == 8))
    assert told(store) == [f"of the 1 batches of run {run} that are not derived yet 0 are there"]
