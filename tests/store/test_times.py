"""When steps were recorded is read back as it was sent, from segments and from blocks."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.block_schema import blocks
from gradspectra_store.errors import BadRequest, UnknownRun
from gradspectra_store.read import elapsed, read_times
from gradspectra_store.rounds import TIMES
from store.batches import a_batch, started, stored
from store.compacting import a_varied_run, compacted, derived_through, questions


def test_times_are_the_same_before_and_after_compaction(store: Store) -> None:
    rng = np.random.default_rng(3)
    run, _, last = a_varied_run(store, rng, 400)
    asked = [{name: value for name, value in one.items() if name != "columns"} for one in questions(rng, last, 5)]

    def read() -> list[tuple[list[int], list[float]]]:
        with store.read() as conn:
            found = [read_times(conn, run, **one) for one in asked]
        assert all(one.damaged == () for one in found)
        return [(one.steps.tolist(), one.seconds.tolist()) for one in found]

    before = read()
    assert all(seconds == [1.7e9 + step for step in steps] for steps, seconds in before)
    assert len(before[0][0]) > 300
    assert compacted(store, run) > 0
    assert read() == before


def test_a_newer_attempt_hides_older_times(store: Store) -> None:
    one = started(store)
    stored(store, one.run, a_batch(one.session, 1, [1, 2, 5]))
    two = started(store, resume=one.run, start_step=1)
    stored(store, one.run, a_batch(two.session, 1, [3]))
    with store.read() as conn:
        assert read_times(conn, one.run).steps.tolist() == [1, 3]
        assert read_times(conn, one.run, attempt=1).steps.tolist() == [1, 2, 5]
        assert read_times(conn, one.run, 2, 3).steps.tolist() == []
        with pytest.raises(BadRequest, match="stop"):
            read_times(conn, one.run, 3, 2)
        with pytest.raises(UnknownRun):
            read_times(conn, "none")


def test_a_damaged_block_of_times_is_said(store: Store) -> None:
    one = started(store)
    for sequence, first in enumerate(range(1, 1001, 50), 1):
        stored(store, one.run, a_batch(one.session, sequence, list(range(first, first + 50))))
    derived_through(store, one.run)
    assert compacted(store, one.run) > 0
    where = blocks.c.run == one.run, blocks.c.name == TIMES, blocks.c.first == 1
    with store.write() as conn:
        identity, stop, payload = conn.execute(
            sa.select(blocks.c.id, blocks.c.stop, blocks.c.payload).where(*where)
        ).one()
        broken = bytes([*payload[:-1], payload[-1] ^ 1])
        conn.execute(sa.update(blocks).where(blocks.c.id == identity).values(payload=broken))
    with store.read() as conn:
        found = read_times(conn, one.run)
    assert found.damaged == ((1, stop - 1),)
    assert found.steps.tolist() == list(range(stop, 1001))


def test_seconds_since_the_first_record_are_found_at_any_steps_before_and_after_compaction(store: Store) -> None:
    one = started(store)
    for sequence, first in enumerate(range(1, 30_001, 3000), 1):
        stored(store, one.run, a_batch(one.session, sequence, range(first, first + 3000, 3)))
    two = started(store, resume=one.run, start_step=20_000)
    later = np.arange(20_001, 20_101)
    stored(store, one.run, a_batch(two.session, 1, later.tolist(), times=5e9 + later))
    derived_through(store, one.run)
    asked = np.array([0, 1, 3, 4, 9000, 9001, 19_999, 20_000, 20_001, 20_100, 25_000])
    known = [0, 0, 0, 3, 8997, 9000, 19_998, 19_998, 19_998, 20_097, 20_097]
    for _ in range(2):
        with store.read() as conn:
            assert elapsed(conn, one.run, asked).tolist() == known
            assert elapsed(conn, one.run, asked[5:6]).tolist() == known[5:6]
            assert elapsed(conn, one.run, asked[-1:], 1).tolist() == [24_999]
        compacted(store, one.run)
