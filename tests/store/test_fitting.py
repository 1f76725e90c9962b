"""Rows beside numbers that are whole: what does not fit them is told, and put right where that needs no guessing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.block_schema import blocks
from gradspectra_store.checking import check_blocks, check_segments
from gradspectra_store.compaction import compactable_runs, note_compacted, rounds_of
from gradspectra_store.derived import pending
from gradspectra_store.layer_tables import lost_tables
from gradspectra_store.read import read_layers, read_series
from gradspectra_store.repairing import make_again, put_right, take_back_notes
from gradspectra_store.retention import Retention
from gradspectra_store.retiring import next_layers
from gradspectra_store.schema import derived_segments, layer_tables, segments, sessions
from gradspectra_store.thinning import next_spectra
from store.batches import TABLE, a_batch, layer_block, spectrum_block, started, stored
from store.compacting import a_plain_run, a_varied_run, compacted, derived_through
from store.retaining import ended, old_run


def nothing_late(*given: object) -> None:
    raise AssertionError(f"these are no spectra: {given}")


def rows_of(store: Store, table: sa.Table) -> list[Any]:
    with store.read() as conn:
        return [tuple(row) for row in conn.execute(sa.select(table).order_by(table.c.id))]


def run_session(store: Store, run: str) -> str:
    with store.read() as conn:
        return str(conn.execute(sa.select(sessions.c.id).where(sessions.c.run == run)).scalar_one())


def flipped(store: Store, table: sa.Table, column: str, value: object, **place: object) -> None:
    """Change a column of the one row of a place."""
    where = [table.c[name] == own for name, own in place.items()]
    with store.write() as conn:
        assert conn.execute(sa.update(table).where(*where).values({column: value})).rowcount == 1


def a_run_of_all_kinds(store: Store) -> str:
    run = started(store)
    for sequence in range(1, 5):
        steps = list(range(16 * sequence - 15, 16 * sequence + 1))
        layers = layer_block(steps, {"grad_sq": np.outer(steps, [1, 2, 3])})
        spectra = spectrum_block([(steps[0], 0), (steps[2], 1)])
        stored(store, run.run, a_batch(run.session, sequence, steps, layer_table=TABLE, layers=layers, spectra=spectra))
    return run.run


WRONG = {
    "first_step": 33 + 2**20,
    "last_step": 40,
    "digest": "0123456789abcdef",
    "attempt": 3,
    "rank": 8,
    "kind": "scalbrs",
    "members": b"\x05",
}


@pytest.mark.parametrize("kind", ["scalars", "layers", "spectra"])
def test_a_row_that_does_not_fit_its_payload_is_told_and_put_right(store: Store, kind: str) -> None:
    run = a_run_of_all_kinds(store)
    before = rows_of(store, segments)
    assert check_segments(store, 60.0).damaged == ()
    for column, value in WRONG.items():
        if column == "members" and kind != "spectra":
            continue
        flipped(store, segments, column, value, kind=kind, batch=3, run=run)
        (place,) = check_segments(store, 60.0).damaged
        assert (place.run, place.attempt, place.name) == (run, 1, f"{kind} (segment)")
        assert (place.first_step, place.last_step) == ((33, 35) if kind == "spectra" else (33, 48))
        assert place.misfit is not None
        assert place.misfit.why == f"its row has a wrong {column}"
        assert put_right(store, [place]) == [place]
        assert rows_of(store, segments) == before


def test_what_nobody_can_know_is_told_alone(store: Store) -> None:
    run = a_run_of_all_kinds(store)
    for column, value, right in (("session", "of nobody", None), ("sequence", 1 << 20, 3), ("batch", 1 << 20, 3)):
        flipped(store, segments, column, value, kind="layers", first_step=33, run=run)
        (place,) = check_segments(store, 60.0).damaged
        assert place.misfit is not None
        assert (place.misfit.why, place.misfit.right) == (f"its row has a wrong {column}", {})
        assert put_right(store, [place]) == []
        own = run_session(store, run) if right is None else right
        flipped(store, segments, column, own, kind="layers", first_step=33, run=run)


def test_numbers_that_a_row_has_hidden_are_answered_and_compacted_again(store: Store) -> None:
    run = a_plain_run(store, 640)

    def answered() -> list[Any]:
        with store.read() as conn:
            return read_series(conn, run, ["loss"], columns=1000).x.tolist()

    flipped(store, segments, "first_step", 33 + 2**20, kind="scalars", batch=3, run=run)
    with store.write() as conn:
        note_compacted(conn, run, 10**6, rounds_of(conn, run))
    assert answered() == [*range(1, 33), *range(49, 641)]
    put_right(store, check_segments(store, 60.0).damaged)
    assert answered() == list(range(1, 641))
    with store.read() as conn:
        assert compactable_runs(conn) == [run]
    compacted(store, run)
    assert answered() == list(range(1, 641))


def test_a_row_that_lost_its_table_is_compacted_when_it_names_it_again(store: Store) -> None:
    run = a_plain_run(store, 640)
    flipped(store, segments, "digest", "0123456789abcdef", kind="layers", batch=3, run=run)
    compacted(store, run)
    assert len(put_right(store, check_segments(store, 60.0).damaged)) == 1
    assert len(take_back_notes(store, nothing_late)) == 1
    compacted(store, run)
    with store.read() as conn:
        found = read_layers(conn, run, "grad_sq", columns=1000)
    assert (found.x.tolist(), found.damaged) == (list(range(1, 641)), ())


def test_the_row_of_a_block_is_put_right_too(store: Store) -> None:
    run = a_plain_run(store, 640)
    compacted(store, run)
    before = rows_of(store, blocks)
    for column, level, value in (("first", 0, 65), ("stop", 0, 513 + 2**30), ("entries", 0, 3), ("entries", 1, 3)):
        first = {} if level else {"first": 1}
        flipped(store, blocks, column, value, name="loss", level=level, run=run, **first)
        (place,) = check_blocks(store, 60.0).damaged
        assert place.misfit is not None
        assert (place.misfit.why, make_again(store, [place])) == (f"its row has a wrong {column}", set())
        assert put_right(store, [place]) == [place]
        assert rows_of(store, blocks) == before


def test_of_buckets_what_a_row_hides_is_told(store: Store) -> None:
    run = a_plain_run(store, 640)
    compacted(store, run)
    with store.read() as conn:
        of_level = blocks.c.run == run, blocks.c.name == "loss", blocks.c.level == 1
        sound = conn.execute(sa.select(blocks).where(*of_level)).one()
    for column, value in (("first", 8), ("stop", 8), ("stop", 2**40), ("attempt", 2)):
        flipped(store, blocks, column, value, id=sound.id)
        (place,) = check_blocks(store, 60.0).damaged
        assert place.misfit is not None
        assert (place.misfit.why, place.misfit.right) == (f"its row has a wrong {column}", {})
        flipped(store, blocks, column, getattr(sound, column), id=sound.id)


def test_rows_of_a_run_with_everything_fit(store: Store) -> None:
    run, _, _ = a_varied_run(store, np.random.default_rng(5), 300)
    for _ in range(2):
        for checked in (check_segments(store, 60.0), check_blocks(store, 60.0)):
            assert (checked.all, checked.damaged) == (True, ())
        compacted(store, run)
    assert len(rows_of(store, derived_segments)) > 0
    assert len(rows_of(store, blocks)) > 0


def test_rows_of_a_retired_run_fit(store: Store) -> None:
    run = a_run_of_all_kinds(store)
    plain = old_run(store, 1280)
    ended(store, run)
    for of_run, following in ((plain, next_layers), (run, next_spectra)):
        before = rows_of(store, blocks), rows_of(store, segments)
        while True:
            with store.read() as conn:
                made = following(conn, of_run, Retention(days=30.0, level=2, spectra=2))
            if made is None:
                break
            with store.write() as conn:
                made.write(conn)
        assert (rows_of(store, blocks), rows_of(store, segments)) != before
    assert check_segments(store, 60.0).damaged == check_blocks(store, 60.0).damaged == ()


def test_a_table_that_only_blocks_need_is_missed(store: Store) -> None:
    run = started(store)
    for sequence, first in enumerate(range(1, 577, 64), 1):
        steps = list(range(first, first + 64))
        block = layer_block(steps, {"grad_sq": np.outer(steps, [1, 2, 3])}) if sequence < 9 else None
        stored(store, run.run, a_batch(run.session, sequence, steps, layer_table=TABLE, layers=block))
    derived_through(store, run.run)
    compacted(store, run.run)
    with store.write() as conn:
        conn.execute(sa.delete(layer_tables).where(layer_tables.c.run == run.run))
    with store.read() as conn:
        assert lost_tables(conn) == []  # no segment names it, and none came after it
    found = check_blocks(store, 60.0).damaged
    assert {place.misfit.why for place in found if place.misfit} == {"a table of its layers is lost"}
    assert {place.name for place in found} == {"grad_sq", "grad_norm"}
    assert (put_right(store, found), make_again(store, found)) == ([], set())


def test_a_batch_whose_kind_is_lost_holds_up_no_other(store: Store) -> None:
    run = a_run_of_all_kinds(store)
    flipped(store, segments, "kind", "scalbrs", kind="scalars", batch=2, run=run)
    flipped(store, segments, "kind", "laybrs", kind="layers", batch=3, run=run)
    with store.read() as conn:
        found = pending(conn, run, 0, 10)
    assert [one.batch_number for one in found] == [1, 3, 4]
    assert [one.batch.layers is None for one in found] == [False, True, False]
