"""Thinning the spectra of runs that ended long ago."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_store import Store, thinning
from gradspectra_store.freeing import bytes_going, bytes_of
from gradspectra_store.read import layer_list, read_spectra, spectra_left
from gradspectra_store.retention import Retention, due_runs
from gradspectra_store.schema import segments
from gradspectra_worker.retain import retain
from store.batches import TABLE, a_batch, spectrum_block, started, stored
from store.retaining import LATER, ended

KEPT = Retention(days=30.0, level=1, spectra=10)


def a_run(store: Store, steps: int = 1000, each: int = 20) -> str:
    """A run of which each layer has a spectrum of its gradient at every sixth step, staggered, some in one batch."""
    run = started(store)
    for sequence, first in enumerate(range(1, steps + 1, each), 1):
        own = list(range(first, first + each))
        places = [(step, step // 2 % 3) for step in own if step % 2 == 0]
        spectra = spectrum_block(places) if places else None
        stored(store, run.run, a_batch(run.session, sequence, own, layer_table=TABLE, spectra=spectra))
    ended(store, run.run)
    return run.run


def steps_of(store: Store, run: str, layer: int = 1) -> list[int]:
    """At which steps a layer has a spectrum; the spectra are those that were sent."""
    with store.read() as conn:
        found = read_spectra(conn, run, TABLE.names[layer], columns=10_000)
    for one in found:
        assert one.singular_values.tolist() == [one.step, one.step / 2, one.step / 4]
    return [one.step for one in found]


def test_so_many_are_left_of_each_layer_over_the_whole_run(store):
    run = a_run(store)
    before = {layer: steps_of(store, run, layer) for layer in range(3)}
    with store.read() as conn:
        size, going = bytes_of(conn, run), bytes_going(conn, run, KEPT)
        assert spectra_left(conn, run) == ()
    assert retain(store, run, KEPT, LATER) == 8
    for layer, old in before.items():
        left = steps_of(store, run, layer)
        assert 8 <= len(left) <= 10
        assert set(left) <= set(old)
        assert (left[0], left[-1]) == (old[0], old[-1])
        assert max(np.diff(left)) <= 2 * 128
    with store.read() as conn:
        assert abs(size - going - bytes_of(conn, run)) < 0.1 * size
        assert bytes_of(conn, run) < size
        assert spectra_left(conn, run) == ((2, 1023, 128),)
        assert spectra_left(conn, run, start=500, stop=600) == ((500, 599, 128),)
        assert all(layer["spectra"] for layer in layer_list(conn, run))
        assert due_runs(conn, KEPT, LATER) == []
    assert retain(store, run, KEPT, LATER) == 0


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_of_each_matrix_as_many_are_left(store):
    run = started(store)
    for sequence in range(1, 101):
        parts = {of: spectrum_block([(sequence, 1)], of=of) for of in ("gradient", "weight")}
        spectra = spectrum_block([(sequence, 1), (sequence, 1)])
        both = type(spectra)(
            **{name: getattr(spectra, name) for name in spectra.__dataclass_fields__ if name != "of"},
            of=tuple(parts),
        )
        stored(store, run.run, a_batch(run.session, sequence, [sequence], layer_table=TABLE, spectra=both))
    ended(store, run.run)
    retain(store, run.run, KEPT, LATER)
    with store.read() as conn:
        for of in ("gradient", "weight"):
            found = read_spectra(conn, run.run, TABLE.names[1], columns=1000, of=of)
            assert [one.step for one in found] == [1, 15, 31, 47, 63, 79, 95, 100]


def test_thinned_bit_by_bit_it_is_the_same(store, monkeypatch):
    run, expected = a_run(store, 240, each=2), a_run(store, 240, each=2)
    retain(store, expected, KEPT, LATER)
    monkeypatch.setattr(thinning, "MOST_SEGMENTS", 7)
    for _ in range(3):
        assert retain(store, run, KEPT, LATER, turns=3) == 3
    threads = [threading.Thread(target=retain, args=(store, run, KEPT, LATER)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    retain(store, run, KEPT, LATER)
    assert [steps_of(store, run, layer) for layer in range(3)] == [steps_of(store, expected, i) for i in range(3)]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_fewer_are_left_by_a_stricter_retention(store):
    run = a_run(store)
    retain(store, run, KEPT, LATER)
    first = steps_of(store, run)
    stricter = Retention(30.0, 1, 3)
    assert retain(store, run, stricter, LATER) > 0
    second = steps_of(store, run)
    assert set(second) < set(first)
    assert (len(second), second[0], second[-1]) == (3, first[0], first[-1])
    with store.read() as conn:
        assert spectra_left(conn, run) == ((2, 1023, 512),)


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_few_spectra_stay_as_they_are(store):
    run = a_run(store, steps=12)
    before = steps_of(store, run)
    with store.read() as conn:
        held = conn.execute(sa.select(segments.c.id).where(segments.c.kind == "spectra")).scalars().all()
    assert retain(store, run, Retention(30.0, 1, 100), LATER) == 0
    assert steps_of(store, run) == before
    with store.read() as conn:
        assert conn.execute(sa.select(segments.c.id).where(segments.c.kind == "spectra")).scalars().all() == held


@pytest.mark.parametrize("spectra", [2, 5])
@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_never_more_than_asked_for(store, spectra):
    run = a_run(store, steps=301, each=3)
    retain(store, run, Retention(30.0, 1, spectra), LATER)
    assert 2 <= len(steps_of(store, run)) <= spectra
