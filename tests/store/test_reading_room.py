"""The room that reading takes: a long range is bucketed piece by piece, in arrays of a bounded size."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_store import Store
from gradspectra_store.ranges import PIECE_VALUES, Grid
from gradspectra_store.read import read_layers
from gradspectra_store.schema import runs
from store.batches import a_batch, layer_block, started, stored

LAYERS, STEPS, AT_ONCE = 512, 8192, 256


def test_millions_of_recorded_values_are_not_held_at_once(store: Store) -> None:
    table = LayerTable.of(Layer(f"layers.{at}.weight", "up", at, (8, 8)) for at in range(LAYERS))
    values = np.random.default_rng(0).lognormal(size=(AT_ONCE, LAYERS))
    run = started(store)
    for sequence in range(1, STEPS // AT_ONCE + 1):
        steps = np.arange(AT_ONCE * (sequence - 1) + 1, AT_ONCE * sequence + 1)
        block = layer_block(steps.tolist(), {"grad_sq": values}, table)
        stored(store, run.run, a_batch(run.session, sequence, steps, layer_table=table, layers=block))
    with store.read() as conn:
        tracemalloc.start()
        answer = read_layers(conn, run.run, "grad_norm", columns=64)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert answer.mean.shape == (LAYERS, 33)  # of 256 steps
    bound = 2 * LAYERS * STEPS * 8  # what was decoded takes a quarter; of all at once the way takes more than this
    assert peak < bound, f"{peak / 2**20:.0f} of {bound / 2**20:.0f} MiB"


def test_the_pages_that_kept_connections_to_sqlite_hold_are_few(tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'a.db'}")
    with store.read() as one, store.write() as other:
        pages = [conn.exec_driver_sql("PRAGMA cache_size").scalar_one() for conn in (one, other)]
        kept = one.engine.pool.size()  # type: ignore[attr-defined]
    assert all(-size * kept <= 32 << 10 for size in pages), f"{pages} KiB in each of {kept} connections"
    assert max(pages) < 0  # KiB, whatever the size of a page
    store.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what is mapped is read in /proc")
def test_no_connection_to_sqlite_maps_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = Store.open(f"sqlite:///{path}")
    started(store)
    store.checkpoint()  # what is still in the log is not mapped anyway
    with store.read() as one, store.read() as other:
        for conn in (one, other):
            assert conn.execute(sa.select(runs.c.id)).one()
        mapped = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    assert f"{path}-shm" in mapped  # the index of the log is, once for all connections
    assert str(path) not in mapped
    store.close()


def test_a_wide_answer_from_blocks_is_read_in_one_piece_and_as_recorded_in_many() -> None:
    grid = Grid.of(0, 99_999, 1000)
    assert (grid.width, len(list(grid.pieces(2000, loose=0)))) == (128, 1)
    beside = Grid.of(1, 1000, 1000)  # as many steps as a piece may have, on both sides of where it would be cut
    assert list(beside.pieces(2000, loose=0)) == [(1, 1001)]
    pieces = list(grid.pieces(2000, loose=100_000))
    assert all((stop - first) * 2000 <= PIECE_VALUES for first, stop in pieces)
    assert (pieces[0][0], pieces[-1][1] >= 100_000, {first % grid.width for first, _ in pieces}) == (0, True, {0})
