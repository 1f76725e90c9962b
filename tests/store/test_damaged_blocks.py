"""Blocks whose checksum is wrong: they take their own steps away, say so, and hold nothing up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.block_schema import blocks
from gradspectra_store.checking import DamagedPlace, check_blocks
from gradspectra_store.derived import DerivedBatch, save_derived
from gradspectra_store.read import read_layers, read_series
from store.batches import a_batch, columns, layer_block, started, stored
from store.compacting import a_plain_run, compacted, derived_through


def damage(store: Store, run: str, **place: Any) -> None:
    """Flip one bit of the payload of the one block of a place."""
    where = [blocks.c[name] == value for name, value in (place | {"run": run}).items()]
    with store.write() as conn:
        identity, payload = conn.execute(sa.select(blocks.c.id, blocks.c.payload).where(*where)).one()
        broken = bytes([*payload[:-1], payload[-1] ^ 1])
        conn.execute(sa.update(blocks).where(blocks.c.id == identity).values(payload=broken))


def test_a_damaged_block_loses_its_own_steps_and_says_so(store: Store) -> None:
    run = a_plain_run(store, 1000)
    compacted(store, run)
    damage(store, run, name="loss", level=0, first=1)
    damage(store, run, name="grad_sq", level=0, first=512)
    with store.read() as conn:
        whole = read_series(conn, run, ["loss"], columns=1000)
        part = read_series(conn, run, ["loss"], 500, 520)
        coarse = read_series(conn, run, ["loss"], columns=100)
        layers = read_layers(conn, run, "grad_norm", columns=1000)
    assert whole.damaged == ((1, 511),)
    assert whole.x.tolist() == list(range(512, 1001))
    assert (part.damaged, part.x.tolist()) == (((500, 511),), list(range(512, 520)))
    assert coarse.damaged == ()
    assert coarse.series["loss"].max.tolist() == [*range(15, 1000, 16), 1000]
    assert layers.damaged == ((512, 944),)
    assert layers.x.tolist() == [*range(1, 512), *range(945, 1001)]


def test_a_damaged_bucket_is_made_again_from_those_below(store: Store) -> None:
    run = a_plain_run(store, 1000)
    compacted(store, run)
    with store.read() as conn:
        before = read_series(conn, run, ["loss"], columns=10)
    damage(store, run, name="loss", level=2)
    with store.read() as conn:
        after = read_series(conn, run, ["loss"], columns=10)
    np.testing.assert_equal(after.series["loss"].mean, before.series["loss"].mean)
    assert after.damaged == ()


def test_a_run_goes_on_beside_a_damaged_block(store: Store) -> None:
    run = started(store)
    for number in range(1, 21):
        losses = columns({"loss": [float(step) for step in range(64 * number - 63, 64 * number + 1)]}, 64)
        steps = range(64 * number - 63, 64 * number + 1)
        stored(store, run.run, a_batch(run.session, number, steps, scalars=losses))
        derived_through(store, run.run)
        compacted(store, run.run)
        if number == 5:
            damage(store, run.run, name="loss", level=0, first=193)
            damage(store, run.run, name="loss", level=1, first=64)
    with store.read() as conn:
        fine = read_series(conn, run.run, ["loss"], columns=2000)
        coarse = read_series(conn, run.run, ["loss"], columns=160)
    assert fine.damaged == ((193, 256),)
    assert fine.x.tolist() == [*range(1, 193), *range(257, 1281)]
    assert coarse.series["loss"].max.tolist() == [*range(15, 1280, 16), 1280]


def test_a_bucket_made_above_damaged_numbers_says_what_it_lacks(store: Store) -> None:
    run = started(store)
    for number in range(1, 21):
        steps = range(64 * number - 63, 64 * number + 1)
        losses = columns({"loss": [float(step) for step in steps]}, 64)
        stored(store, run.run, a_batch(run.session, number, steps, scalars=losses))
        derived_through(store, run.run)
        compacted(store, run.run)
        if number == 5:
            damage(store, run.run, name="loss", level=0, first=193)
            damage(store, run.run, name="loss", level=1, first=192)
            damage(store, run.run, name="loss", level=2, first=192)
    with store.read() as conn:
        coarse = read_series(conn, run.run, ["loss"], columns=3)
        made_before = read_series(conn, run.run, ["loss"], columns=6)
        elsewhere = read_series(conn, run.run, ["loss"], 512, 1280, columns=3)
    left = [step for step in range(1, 512) if not 193 <= step <= 256]
    assert coarse.series["loss"].mean[0] == pytest.approx(sum(left) / len(left))
    assert coarse.damaged == ((193, 256),)
    assert made_before.series["loss"].mean[0] == 128.0
    assert made_before.damaged == ((256, 256),)
    assert elsewhere.damaged == ()


def test_a_bucket_made_again_for_late_numbers_says_what_it_lacks(store: Store) -> None:
    run = a_plain_run(store, 600)
    early = layer_block(list(range(1, 500)), {"effective_rank": np.ones((499, 3))})
    with store.write() as conn:
        save_derived(conn, run, [DerivedBatch(1, 1, None, [early])])
    compacted(store, run)
    damage(store, run, name="effective_rank", level=0)
    with store.write() as conn:
        save_derived(
            conn, run, [DerivedBatch(1, 2, None, [layer_block([100], {"effective_rank": np.full((1, 3), 5)})])]
        )
    compacted(store, run)
    with store.read() as conn:
        fine = read_layers(conn, run, "effective_rank", 0, 128, columns=128)
        found = [read_layers(conn, run, "effective_rank", columns=columns) for columns in (10, 5, 3)]
    assert (fine.x.tolist(), fine.damaged) == ([100], ((1, 127),))
    for coarse, at in zip(found, (1, 0, 0), strict=True):
        assert (coarse.mean[0, at] > 1, coarse.max[0].max(), coarse.max[0, at]) == (True, 5, 5)
        assert coarse.damaged == ((96, 103), (496, 499))


def test_a_check_names_what_is_damaged_and_stops_in_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_plain_run(store, 1000)
    compacted(store, run)
    damage(store, run, name="loss", level=0, first=1)
    checked = check_blocks(store, 60.0)
    with store.read() as conn:
        assert checked.count == conn.execute(sa.select(sa.func.count()).select_from(blocks)).scalar_one()
    assert checked.all
    assert checked.damaged == (DamagedPlace(run, 1, "loss", 0, 1, 511, 0),)
    monkeypatch.setattr("gradspectra_store.checking._AT_ONCE", 4)
    hurried = check_blocks(store, -1.0)
    assert (hurried.count, hurried.all) == (4, False)
