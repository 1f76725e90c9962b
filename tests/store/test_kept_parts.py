"""Parts kept for whoever asks again: no answer is older than its run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gradspectra_core.views import LayerSeries
from gradspectra_store import Store, kept_parts, layer_values
from gradspectra_store.derived import DerivedBatch, advance, claim, save_derived
from gradspectra_store.errors import UnknownRun
from gradspectra_store.read import read_layers
from gradspectra_store.runs import delete_run
from gradspectra_store.segment_cache import SegmentCache
from store.batches import TABLE, a_batch, layer_block, started, stored
from store.compacting import a_plain_run, compacted
from store.retaining import asked, same


def again(store: Store, run: str, name: str, **question: Any) -> LayerSeries:
    """The same answer by a reader that keeps nothing."""
    with store.read() as conn:
        return read_layers(conn.execution_options(segment_cache=None), run, name, **question)


def whoever_reads_fails(*_: Any) -> LayerSeries:
    raise AssertionError("all of this was read before")


@pytest.mark.parametrize(
    "question", [{}, {"columns": 7}, {"start": 70, "stop": 300, "columns": 50}, {"layers": [TABLE.names[2]]}]
)
def test_who_asks_again_is_answered_the_same_without_reading(
    store: Store, monkeypatch: pytest.MonkeyPatch, question: dict[str, Any]
) -> None:
    run = a_plain_run(store, 640, size=64)
    compacted(store, run)
    first = asked(store, run, "grad_norm", **question)
    same(first, again(store, run, "grad_norm", **question))
    monkeypatch.setattr(layer_values, "_read", whoever_reads_fails)
    same(asked(store, run, "grad_norm", **question), first)
    for other in ({"columns": 8}, {"start": 71, "stop": 300, "columns": 50}, {"layers": TABLE.names[:2]}):
        with pytest.raises(AssertionError, match="read before"):
            asked(store, run, "grad_norm", **other)
    with pytest.raises(AssertionError, match="read before"):
        asked(store, run, "weight_norm", **question)


def takes_in(store: Store, run: Any) -> None:
    layers = layer_block([9], {"grad_sq": np.full((1, 3), 81.0)})
    stored(store, run.run, a_batch(run.session, 2, [9], layer_table=TABLE, layers=layers))


def derives(store: Store, run: Any, batch: int = 2) -> None:
    metrics = layer_block([batch], {"effective_rank": np.array([[1, 2, 3]])})
    with store.write() as conn:
        cursor = claim(conn, run.run)
        assert cursor is not None
        save_derived(conn, run.run, [DerivedBatch(1, batch, None, [metrics])])
        advance(conn, run.run, replace(cursor, batch=batch))


def resumes(store: Store, run: Any) -> None:
    assert started(store, resume=run.run, start_step=2).run == run.run


@pytest.mark.parametrize(("event", "name"), [(takes_in, "grad_sq"), (derives, "effective_rank"), (resumes, "grad_sq")])
def test_what_changes_a_run_is_in_the_next_answer(store: Store, event: Callable[[Store, Any], None], name: str) -> None:
    run = started(store)
    layers = layer_block([1, 2, 5], {"grad_sq": np.arange(9.0).reshape(3, 3)})
    stored(store, run.run, a_batch(run.session, 1, [1, 2, 5], layer_table=TABLE, layers=layers))
    derives(store, run, 1)
    before = asked(store, run.run, name)
    event(store, run)
    after = asked(store, run.run, name)
    assert after.mean.size != before.mean.size
    same(after, again(store, run.run, name))


def test_a_run_that_is_deleted_is_not_answered_as_before(store: Store) -> None:
    run = a_plain_run(store, 64, size=64)
    assert len(asked(store, run, "grad_norm").x) == 64
    with store.write() as conn:
        delete_run(conn, run)
    with pytest.raises(UnknownRun):
        asked(store, run, "grad_norm")


def test_what_is_kept_counts_the_whole_arrays_that_it_holds_a_part_of(store: Store) -> None:
    run = a_plain_run(store, 640, size=64)
    compacted(store, run)
    cache = SegmentCache()
    with store.read() as conn:
        own = conn.execution_options(segment_cache=cache)
        read_layers(own, run, "grad_norm", 64, 128, columns=8)
    (kept,) = (entry.kept for entry in cache._kept.values() if hasattr(entry, "kept"))
    (part,) = kept.parts
    assert part.mean.base is not None
    assert part.nbytes < part.mean.base.nbytes < kept.nbytes < cache.nbytes


def test_a_long_answer_is_not_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_plain_run(store, 640, size=64)
    compacted(store, run)
    monkeypatch.setattr(kept_parts, "MOST_BYTES", 1000)
    asked(store, run, "grad_norm")
    monkeypatch.setattr(layer_values, "_read", whoever_reads_fails)
    with pytest.raises(AssertionError, match="read before"):
        asked(store, run, "grad_norm")
