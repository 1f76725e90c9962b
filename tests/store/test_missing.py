"""Rows that are gone are told, and written again where what is left says what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.agreeing import disagreements, make_agree
from gradspectra_store.block_schema import blocks, extents
from gradspectra_store.checking import check_blocks
from gradspectra_store.read import read_series
from gradspectra_store.schema import cursors, names, runs, segments
from store.batches import a_batch, started, stored
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
    assert (name, first, last) == ("times", 520, 1023)


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
    for turns in (1, 2, 10**6):
        compacted(store, run, turns)
        assert (told(store), lost_blocks(store)) == ([], [])


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
