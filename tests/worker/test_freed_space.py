"""What retention and deleting a run free is used again by the database."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_store import Store
from gradspectra_store.engines import PAGE_BYTES
from gradspectra_store.freeing import bytes_of
from gradspectra_store.runs import delete_run
from gradspectra_worker.retain import retain
from store.batches import a_batch, layer_block, started, stored
from store.retaining import KEPT, LATER, ended

WIDE = LayerTable.of(Layer(f"layers.{at}.up.weight", "up", at, (32, 8)) for at in range(64))


def wide_run(store: Store) -> str:
    """About half a MiB of layer values."""
    run, rng = started(store), np.random.default_rng(1)
    for sequence, first in enumerate(range(1, 2001, 200), 1):
        own = list(range(first, first + 200))
        layers = layer_block(own, {"grad_sq": rng.lognormal(size=(200, 64))}, WIDE)
        stored(store, run.run, a_batch(run.session, sequence, own, layer_table=WIDE, layers=layers))
    ended(store, run.run)
    return run.run


def pages(store: Store) -> tuple[int, int]:
    """Pages of the file, and those of them that are free."""
    with store.read() as conn:
        count, free = (conn.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("page_count", "freelist_count"))
        assert conn.exec_driver_sql("PRAGMA page_size").scalar_one() == PAGE_BYTES
    return int(count), int(free)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_sqlite_has_the_pages_free_for_what_comes_next(store: Store):
    run = wide_run(store)
    count, free = pages(store)
    with store.read() as conn:
        before = bytes_of(conn, run)
    retain(store, run, KEPT, LATER)
    with store.read() as conn:
        after = bytes_of(conn, run)
    assert before - after > 150_000
    assert pages(store)[0] == count
    assert PAGE_BYTES * (pages(store)[1] - free) > 0.8 * (before - after)
    with store.write() as conn:
        delete_run(conn, run)
    assert PAGE_BYTES * (pages(store)[1] - free) > 0.8 * before
    wide_run(store)
    assert pages(store)[0] == count


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
def test_postgresql_has_the_space_free_after_an_ordinary_vacuum(store: Store, url: str):
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")

    def size() -> int:
        with engine.connect() as conn:
            conn.execute(sa.text("VACUUM blocks, segments"))
            return int(conn.execute(sa.text("SELECT pg_total_relation_size('blocks')")).scalar_one())

    run = wide_run(store)
    once = size()
    for _ in range(2):
        retain(store, run, KEPT, LATER)
        with store.write() as conn:
            delete_run(conn, run)
        size()
        run = wide_run(store)
    assert size() < 1.5 * once
    engine.dispose()
