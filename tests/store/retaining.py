"""Runs that ended long ago, and what is left of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import sqlalchemy as sa
from gradspectra_core.views import LayerSeries
from gradspectra_core.widths import finer_than
from gradspectra_store import Store
from gradspectra_store.block_schema import blocks
from gradspectra_store.compaction import note_compacted, rounds_of
from gradspectra_store.read import read_layers
from gradspectra_store.retention import DAY, Retention
from gradspectra_store.run_views import get_run
from gradspectra_store.runs import finish_run, mark_lost
from gradspectra_store.schema import sessions
from store.compacting import a_plain_run, compacted, derived_through

LATER = 1000.0 + 1000 * DAY
"""When everything that ended at 1000 is due."""

KEPT = Retention(days=30.0, level=1, spectra=10)


def ended(store: Store, run: str, at: float = 1000.0) -> None:
    """Finish all sessions of a run, and derive and compact it by hand."""
    derived_through(store, run)
    compacted(store, run)
    with store.write() as conn:
        for session in conn.execute(sa.select(sessions.c.id).where(sessions.c.run == run)).scalars().all():
            finish_run(conn, run, session, "finished", at)
        mark_lost(conn, at + 1e6)
        note_compacted(conn, run, 10**6, rounds_of(conn, run))


def old_run(store: Store, steps: int = 640) -> str:
    """A run with losses and grad_sq of three layers that ended long ago."""
    run = a_plain_run(store, steps, size=64)
    ended(store, run)
    return run


def shown(store: Store, run: str) -> dict[str, Any]:
    """The run as it is shown."""
    with store.read() as conn:
        found = get_run(conn, run)
    assert found is not None
    return found


def fine_blocks(store: Store, run: str, level: int = 1) -> int:
    """How many blocks of layer values there are below a level."""
    query = sa.select(sa.func.count()).where(
        blocks.c.run == run, blocks.c.kind == "layers", blocks.c.level.in_(finer_than(level))
    )
    with store.read() as conn:
        return int(conn.execute(query).scalar_one())


def asked(store: Store, run: str, name: str, **question: Any) -> LayerSeries:
    """A statistic or metric of all layers."""
    with store.read() as conn:
        return read_layers(conn, run, name, **question)


def same(one: LayerSeries | list[LayerSeries], other: LayerSeries | list[LayerSeries]) -> None:
    """See that answers are the same in all that they say."""
    pairs = zip(one, other, strict=True) if isinstance(one, list) and isinstance(other, list) else [(one, other)]
    for own, its in pairs:
        assert isinstance(own, LayerSeries)
        assert isinstance(its, LayerSeries)
        for field in fields(LayerSeries):
            np.testing.assert_array_equal(getattr(own, field.name), getattr(its, field.name), field.name)


def is_left_of(fine: LayerSeries, coarse: LayerSeries, now: LayerSeries) -> int:
    """See that an answer has the coarse numbers where it says so, and the fine ones elsewhere; how many are coarse.

    fine: the same answer before; coarse: that in buckets as wide as those that are left.
    """
    parts = ("mean", "min", "max", "nonfinite", "present")
    inside = np.zeros(len(now.x), np.bool_)
    gone, all_gone = np.zeros(len(fine.x), np.bool_), np.zeros(len(coarse.x), np.bool_)
    for first, last, _ in now.retired:
        inside |= (now.x >= first) & (now.x <= last)
        gone |= (fine.x >= first) & (fine.x <= last)
        all_gone |= (coarse.x >= first) & (coarse.x <= last)
    np.testing.assert_array_equal(now.x[~inside], fine.x[~gone])
    np.testing.assert_array_equal(now.x[inside], coarse.x[all_gone])
    assert now.layers == fine.layers == coarse.layers
    for part in parts:
        np.testing.assert_array_equal(getattr(now, part)[:, ~inside], getattr(fine, part)[:, ~gone], part)
        np.testing.assert_array_equal(getattr(now, part)[:, inside], getattr(coarse, part)[:, all_gone], part)
    return int(inside.sum())
