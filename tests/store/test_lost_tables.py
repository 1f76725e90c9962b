"""Layer tables that the disk has lost: what nobody can tell the layers of is damaged, and the rest is served."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.views import LayerSeries
from gradspectra_store import Store
from gradspectra_store.derived import pending
from gradspectra_store.layer_tables import layer_list, lost_tables
from gradspectra_store.read import read_layers, read_recorded_layers, read_series
from gradspectra_store.schema import layer_tables
from store.batches import TABLE, a_batch, layer_block, spectrum_block, started, stored
from store.compacting import compacted, derived_through

WIDER = LayerTable.of([*TABLE.layers, Layer("layers.1.up.weight", "up", 1, (32, 8))])
WIDEST = LayerTable.of([*WIDER.layers, Layer("layers.2.up.weight", "up", 2, (32, 8))])


def a_growing_run(store: Store) -> str:
    """A run of 480 steps whose model gets a layer more at 161 and at 321; grad_sq is the step times the place."""
    run = started(store)
    for sequence, first in enumerate(range(1, 481, 16), 1):
        table = (TABLE, WIDER, WIDEST)[(first - 1) // 160]
        steps = list(range(first, first + 16))
        block = layer_block(steps, {"grad_sq": np.outer(steps, np.arange(1, len(table) + 1))}, table)
        stored(store, run.run, a_batch(run.session, sequence, steps, layer_table=table, layers=block))
    derived_through(store, run.run)
    return run.run


def lose(store: Store, run: str, *tables: LayerTable) -> None:
    with store.write() as conn:
        of_tables = layer_tables.c.digest.in_([table.digest for table in tables])
        conn.execute(sa.delete(layer_tables).where(layer_tables.c.run == run, of_tables))


def told(answer: LayerSeries) -> set[int]:
    return {step for first, last in answer.damaged for step in range(first, last + 1)}


@pytest.mark.parametrize("in_blocks", [False, True])
@pytest.mark.parametrize(
    ("gone", "left", "whole"),
    [((WIDEST,), WIDER, 320), ((WIDER,), TABLE, 160), ((WIDER, WIDEST), TABLE, 160), ((TABLE,), None, 0)],
)
def test_what_is_left_is_served_and_the_rest_is_told(
    store: Store, gone: tuple[LayerTable, ...], left: LayerTable | None, whole: int, in_blocks: bool
) -> None:
    run, other = a_growing_run(store), a_growing_run(store)
    if in_blocks:
        assert compacted(store, run)
    lose(store, run, *gone)
    names = () if left is None else left.names
    with store.read() as conn:
        for columns in (1000, 30, 4):
            found = read_layers(conn, run, "grad_sq", columns=columns)
            steps = found.x.tolist()
            assert set(range(whole + 1, 481)) <= told(found)
            assert found.layers == names[: len(found.layers)]
            assert bool(steps) or whole == 0 or in_blocks
            assert read_series(conn, run, ["loss"], columns=columns).damaged == ()
        found = read_layers(conn, run, "grad_sq")
        assert set(found.x.tolist()) | told(found) == set(range(1, 481))
        assert not set(found.x.tolist()) & told(found)
        expected = np.outer(np.arange(1, len(found.layers) + 1), found.x)
        np.testing.assert_array_equal(found.mean[found.present], expected[found.present])
        assert read_recorded_layers(conn, run, ["grad_sq"], names).damaged == found.damaged
        assert [layer["name"] for layer in layer_list(conn, run)] == list(names)
        assert lost_tables(conn) == [run]
        assert read_layers(conn, other, "grad_sq").damaged == ()


def test_what_comes_after_the_loss_is_compacted_where_it_belongs(store: Store) -> None:
    run = a_growing_run(store)
    compacted(store, run)
    lose(store, run, WIDEST)
    again = started(store, resume=run, start_step=480)
    for sequence, first in enumerate(range(481, 801, 16), 1):
        steps = list(range(first, first + 16))
        block = layer_block(steps, {"grad_sq": np.outer(steps, np.arange(1, 6))}, WIDEST)
        stored(store, run, a_batch(again.session, sequence, steps, layer_table=WIDEST, layers=block))
    derived_through(store, run)
    compacted(store, run)
    with store.read() as conn:
        found = read_layers(conn, run, "grad_sq", columns=1000)
        assert lost_tables(conn) == []
    assert (found.x.tolist(), found.damaged) == (list(range(1, 801)), ())
    assert found.layers == WIDEST.names
    np.testing.assert_array_equal(np.nan_to_num(found.mean[2]), 3.0 * found.x)


def test_a_batch_whose_table_is_lost_is_derived_without_its_layers(store: Store) -> None:
    run = started(store)
    table = LayerTable.of([Layer("of this test alone", "up", 0, (32, 8))])
    layers, spectra = layer_block([1, 2], {"grad_sq": np.ones((2, 1))}, table), spectrum_block([(1, 0)], table)
    stored(store, run.run, a_batch(run.session, 1, [1, 2], layer_table=table, layers=layers, spectra=spectra))
    lose(store, run.run, table)
    with store.read() as conn:
        (found,) = pending(conn, run.run, 0, 10)
    assert (found.batch.layers, found.batch.spectra, found.batch.layer_table) == (None, None, None)
    assert sorted(one.kind for one in found.damaged) == ["layers", "spectra"]
    assert found.batch.steps.tolist() == [1, 2]
