"""Segments whose checksum is wrong: their steps are told, the rest is served, and they stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_store import Store
from gradspectra_store.block_schema import blocks
from gradspectra_store.checking import DamagedPlace, check_blocks, check_segments
from gradspectra_store.compaction import compactable_runs, note_compacted, rounds_of
from gradspectra_store.damaged import damaged
from gradspectra_store.derived import DerivedBatch, save_derived
from gradspectra_store.read import (
    find_spectra,
    read_layers,
    read_recorded,
    read_recorded_layers,
    read_series,
    read_times,
)
from gradspectra_store.repairing import make_again, take_back_notes
from gradspectra_store.retiring import next_layers
from gradspectra_store.rounds import next_round
from gradspectra_store.schema import derived_segments, segments
from gradspectra_store.segments import checksum_of
from gradspectra_store.thinning import next_spectra
from store.batches import TABLE, a_batch, layer_block, spectrum_block, started, stored
from store.compacting import a_plain_run, compacted
from store.retaining import KEPT, ended
from store.spoiling import spoil


def restored(store: Store, run: str, payload: bytes, **place: object) -> None:
    """Put a segment back as it was."""
    where = [segments.c[name] == value for name, value in (place | {"run": run}).items()]
    with store.write() as conn:
        conn.execute(sa.update(segments).where(*where).values(payload=payload))


def nothing_late(*given: object) -> None:
    raise AssertionError(f"these are no spectra: {given}")


def all_answers(store: Store, run: str) -> list[object]:
    """Losses and norms at several zooms, and what was recorded."""
    found: list[object] = []
    with store.read() as conn:
        for columns in (1000, 20, 3):
            series, layers = read_series(conn, run, ["loss"], columns=columns), read_layers(conn, run, "grad_norm")
            found += [series.x, series.damaged, series.series["loss"].mean, series.series["loss"].max]
            found += [layers.x, layers.damaged, layers.mean, layers.max]
        recorded = read_recorded(conn, run, ["loss"])
        own = read_recorded_layers(conn, run, ["grad_sq"], TABLE.names)
        times = read_times(conn, run)
    return [
        *found,
        recorded.damaged,
        recorded.parts["loss"].steps,
        own.damaged,
        own.parts["grad_sq"].steps,
        times.steps,
    ]


def test_every_segment_has_its_checksum(store: Store) -> None:
    run = a_plain_run(store, 64)
    with store.write() as conn:
        save_derived(conn, run, [DerivedBatch(1, 1, None, [layer_block([1], {"effective_rank": np.ones((1, 3))})])])
    with store.read() as conn:
        for table, count in ((segments, 8), (derived_segments, 1)):
            rows = conn.execute(sa.select(table.c.payload, table.c.checksum).where(table.c.run == run)).all()
            assert [row.checksum for row in rows] == [checksum_of(row.payload) for row in rows]
            assert len(rows) == count


def test_a_damaged_segment_loses_its_own_steps_at_every_zoom_and_says_so(store: Store) -> None:
    run = a_plain_run(store, 320)
    spoil(store, run, kind="scalars", batch=3)
    spoil(store, run, kind="layers", batch=5)
    left, layers_left = [*range(1, 33), *range(49, 321)], [*range(1, 65), *range(81, 321)]
    with store.read() as conn:
        for columns in (1000, 10, 1):
            assert read_series(conn, run, ["loss"], columns=columns).damaged == ((33, 48),)
            assert read_layers(conn, run, "grad_norm", columns=columns).damaged == ((65, 80),)
        assert read_series(conn, run, ["loss"], columns=1000).x.tolist() == left
        assert read_series(conn, run, ["loss"], 49, 100).damaged == ()
        assert read_layers(conn, run, "grad_norm", columns=1000).x.tolist() == layers_left
        times, recorded = read_times(conn, run), read_recorded(conn, run, ["loss"])
        own = read_recorded_layers(conn, run, ["grad_sq"], TABLE.names)
    assert (times.steps.tolist(), times.damaged) == (left, ((33, 48),))
    assert (recorded.parts["loss"].steps.tolist(), recorded.damaged) == (left, ((33, 48),))
    assert (own.parts["grad_sq"].steps.tolist(), own.damaged) == (layers_left, ((65, 80),))


def test_compaction_goes_past_a_damaged_segment_and_leaves_it_as_it_is(store: Store) -> None:
    run = a_plain_run(store, 640)
    whole = spoil(store, run, kind="scalars", batch=3)
    spoil(store, run, kind="layers", batch=5)
    before = all_answers(store, run)
    assert compacted(store, run) == 2
    np.testing.assert_equal(all_answers(store, run), before)
    with store.read() as conn:
        left = conn.execute(
            sa.select(segments.c.kind, segments.c.batch, segments.c.payload)
            .where(segments.c.run == run, segments.c.last_step < 500)
            .order_by(segments.c.kind)
        ).all()
        noted = conn.execute(sa.select(damaged).order_by(damaged.c.kind)).all()
    assert [(row.kind, row.batch) for row in left] == [("layers", 5), ("scalars", 3)]
    assert left[1].payload == bytes([*whole[:-1], whole[-1] ^ 1])
    assert [(row.kind, row.first_step, row.last_step) for row in noted] == [("layers", 65, 80), ("scalars", 33, 48)]


def test_a_source_of_damaged_segments_alone_holds_up_nothing(store: Store) -> None:
    run = a_plain_run(store, 640, size=64)
    for batch in range(1, 10):
        spoil(store, run, kind="scalars", batch=batch)
    assert compacted(store, run) == 2  # notes them, and compacts the layers
    with store.write() as conn:
        assert next_round(conn, run) is None
        note_compacted(conn, run, 10**6, rounds_of(conn, run))
    with store.read() as conn:
        assert compactable_runs(conn) == []
        assert read_series(conn, run, ["loss"], columns=1000).damaged == ((1, 576),)
        assert read_layers(conn, run, "grad_sq", columns=3).damaged == ()


def test_a_damaged_segment_of_what_was_derived_is_passed_over_too(store: Store) -> None:
    run = a_plain_run(store, 640)
    for batch in range(1, 41):
        own = layer_block([16 * batch], {"effective_rank": np.full((1, 3), batch)})
        with store.write() as conn:
            save_derived(conn, run, [DerivedBatch(1, batch, None, [own])])
    spoil(store, run, derived_segments, batch=2)
    for _ in range(2):
        with store.read() as conn:
            found = read_layers(conn, run, "effective_rank", columns=1000)
        assert (found.damaged, found.x.tolist()) == (((32, 32),), [16, *range(48, 641, 16)])
        compacted(store, run)
    assert [place.name for place in check_segments(store, 60.0).damaged] == ["derived layers (segment)"]


def test_a_segment_from_before_checksums_is_read_as_it_is_and_told_where_it_makes_no_sense(store: Store) -> None:
    run = a_plain_run(store, 640)
    with store.write() as conn:
        conn.execute(sa.update(segments).values(checksum=None))
        conn.execute(sa.update(segments).where(segments.c.batch == 3, segments.c.run == run).values(payload=b"spoiled"))
    with store.read() as conn:
        assert read_series(conn, run, ["loss"]).damaged == read_layers(conn, run, "grad_sq").damaged == ((33, 48),)
    assert compacted(store, run) == 2
    with store.read() as conn:
        found = read_series(conn, run, ["loss"], columns=1000)
    assert (found.damaged, found.x.tolist()) == (((33, 48),), [*range(1, 33), *range(49, 641)])


def test_a_damaged_spectrum_is_told_and_stays(store: Store) -> None:
    run = started(store)
    for batch in range(1, 41):
        spectra = spectrum_block([(batch, 0)])
        stored(store, run.run, a_batch(run.session, batch, [batch], layer_table=TABLE, spectra=spectra))
    spoil(store, run.run, kind="spectra", batch=7)
    with store.read() as conn:
        found = find_spectra(conn, run.run, TABLE.names[0])
        few = find_spectra(conn, run.run, TABLE.names[0], 7, 8, columns=1)
        elsewhere = find_spectra(conn, run.run, TABLE.names[0], 8)
    assert ([one.step for one in found.spectra], found.damaged) == ([*range(1, 7), *range(8, 41)], ((7, 7),))
    assert (few.spectra, few.damaged, elsewhere.damaged) == ([], ((7, 7),), ())
    ended(store, run.run)
    for _ in range(40):
        with store.read() as conn:
            made = next_spectra(conn, run.run, KEPT)
        if made is None:
            break
        with store.write() as conn:
            made.write(conn)
    with store.read() as conn:
        left = find_spectra(conn, run.run, TABLE.names[0])
    assert (left.damaged, len(left.spectra) <= 10) == (((7, 7),), True)


def test_what_a_damaged_segment_had_is_told_of_a_retired_run_too(store: Store) -> None:
    run = a_plain_run(store, 1280, size=64)
    spoil(store, run, kind="layers", batch=2)
    ended(store, run)
    while True:
        with store.read() as conn:
            made = next_layers(conn, run, KEPT)
        if made is None:
            break
        with store.write() as conn:
            made.write(conn)
    with store.read() as conn:
        found = read_layers(conn, run, "grad_sq", columns=1000)
        elsewhere = read_layers(conn, run, "grad_sq", 129, columns=1000)
    assert (found.damaged, len(found.retired) > 0, elsewhere.damaged) == (((65, 128),), True, ())


def test_the_check_names_damaged_segments(store: Store) -> None:
    run = a_plain_run(store, 64)
    spoil(store, run, kind="layers", batch=2)
    checked = check_segments(store, 60.0)
    assert (checked.count, checked.all) == (8, True)
    assert checked.damaged == (DamagedPlace(run, 1, "layers (segment)", None, 17, 32, 0),)


def test_a_segment_that_can_be_read_again_is_compacted_like_any_other(store: Store) -> None:
    run = a_plain_run(store, 640)
    before = all_answers(store, run)
    payload = spoil(store, run, kind="scalars", batch=3)
    compacted(store, run)
    with store.write() as conn:
        note_compacted(conn, run, 10**6, rounds_of(conn, run))
    assert take_back_notes(store, nothing_late) == []
    restored(store, run, payload, kind="scalars", batch=3)
    assert len(take_back_notes(store, nothing_late)) == 1
    with store.read() as conn:
        assert compactable_runs(conn) == [run]
    assert compacted(store, run) == 1
    np.testing.assert_equal(all_answers(store, run), before)


def contents(conn: sa.Connection, *where: sa.ColumnElement[bool]) -> dict[int, bytes]:
    """Payloads of blocks by id."""
    return {row.id: row.payload for row in conn.execute(sa.select(blocks.c.id, blocks.c.payload).where(*where))}


@pytest.mark.parametrize("name", ["loss", "grad_sq", "grad_norm"])
def test_damaged_buckets_are_made_again_as_they_were(store: Store, name: str) -> None:
    run = a_plain_run(store, 1000)
    compacted(store, run)
    of_name = blocks.c.run == run, blocks.c.name == name
    with store.read() as conn:
        before = contents(conn, *of_name)
    for level in (1, 2, 34):
        spoil(store, run, blocks, name=name, level=level)
    found = check_blocks(store, 60.0).damaged
    assert make_again(store, found) == {place.id for place in found}
    assert check_blocks(store, 60.0).damaged == ()
    with store.read() as conn:
        assert contents(conn, *of_name) == before


def test_buckets_of_numbers_that_are_damaged_themselves_are_left_as_they_are(store: Store) -> None:
    run = a_plain_run(store, 1000)
    compacted(store, run)
    spoil(store, run, blocks, name="loss", level=0, first=1)
    spoil(store, run, blocks, name="loss", level=1)
    assert make_again(store, check_blocks(store, 60.0).damaged) == set()
    assert {(place.level, place.first_step) for place in check_blocks(store, 60.0).damaged} == {(1, 0), (0, 1)}
