"""Compaction: the same answers, bit for bit, from segments, from blocks and from any mixture of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from gradspectra_core.blocks import unpack_recorded
from gradspectra_core.pyramid import Level
from gradspectra_core.records import Columns
from gradspectra_store import Store, levels
from gradspectra_store.block_schema import blocks
from gradspectra_store.compaction import compactable_runs, note_compacted, rounds_of, write_round
from gradspectra_store.derived import DerivedBatch, save_derived
from gradspectra_store.levels import ordered
from gradspectra_store.read import read_layers, read_series
from gradspectra_store.rounds import next_round
from gradspectra_store.runs import delete_run
from gradspectra_store.schema import derived_segments, segments
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store.batches import TABLE, a_batch, columns, layer_block, started, stored
from store.compacting import a_plain_run, a_varied_run, answers, compacted, derived_through, questions, rows_of


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and rounds so small that few steps make many."""
    monkeypatch.setattr("gradspectra_store.compaction.UNIT", 8)
    monkeypatch.setattr("gradspectra_store.compaction.KEPT", 8)
    monkeypatch.setattr("gradspectra_store.compaction.CHUNK_BYTES", 12_000)
    monkeypatch.setattr("gradspectra_store.block_rows.MOST_ENTRIES", 32)


def compare_answers(store: Store, seed: int, steps: int) -> None:
    """Answers before, between rounds and after are the same bits, of two attempts, two ranks and two layer tables."""
    rng = np.random.default_rng(seed)
    run, _, last = a_varied_run(store, rng, steps)
    asked = questions(rng, last, 5)
    before = answers(store, run, asked)
    while compacted(store, run, 5) == 5:
        np.testing.assert_equal(answers(store, run, asked[:4]), before[: 4 * 9])
    np.testing.assert_equal(answers(store, run, asked), before)


@pytest.mark.usefixtures("small")
def test_answers_have_the_same_bits_before_during_and_after_compaction(store: Store) -> None:
    compare_answers(store, 1, 200)


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1), steps=st.sampled_from([40, 300, 700]))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.usefixtures("small")
def test_answers_of_any_run_have_the_same_bits(store: Store, seed: int, steps: int) -> None:
    compare_answers(store, seed, steps)


def test_blocks_take_the_place_of_all_but_the_newest_segments(store: Store) -> None:
    run = a_plain_run(store, 1000)
    assert compacted(store, run) == 2  # scalars, and layers
    assert rows_of(store, run, "level", "first", "stop", "entries", name="loss") == [
        (0, 1, 512, 511),
        (0, 512, 945, 433),
        (1, 0, 944, 118),
        (2, 0, 896, 14),
        (3, 0, 512, 1),
        (34, 0, 896, 7),
        (66, 0, 768, 3),
    ]
    with store.read() as conn:
        left = conn.execute(sa.select(segments.c.kind, segments.c.first_step).where(segments.c.run == run)).all()
        answer = read_series(conn, run, ["loss"], columns=2).series["loss"]
        norms = read_layers(conn, run, "grad_norm", columns=2)
    assert sorted(left) == [(kind, first) for kind in ("layers", "scalars") for first in (945, 961, 977, 993)]
    assert (answer.min.tolist(), answer.max.tolist(), answer.last.tolist()) == ([1, 512], [511, 1000], [511, 1000])
    assert (norms.x.tolist(), norms.max.tolist()) == ([1, 512], [[511, 1000]] * 3)


def test_times_are_kept(store: Store) -> None:
    run = a_plain_run(store, 100)
    compacted(store, run)
    with store.read() as conn:
        payload = conn.execute(sa.select(blocks.c.payload).where(blocks.c.run == run, blocks.c.name == "")).scalar_one()
    kept = unpack_recorded(payload)
    assert kept.steps.tolist() == list(range(1, 49))
    assert kept.values.tolist() == [[1.7e9 + step for step in range(1, 49)]]


def test_levels_finer_than_the_cadence_are_not_stored(store: Store) -> None:
    run = a_plain_run(store, 1000, every=8)
    compacted(store, run)
    assert rows_of(store, run, "level", "first", "stop", "entries", name="grad_norm") == [
        (2, 0, 896, 14),
        (3, 0, 512, 1),
        (34, 0, 896, 7),
        (66, 0, 768, 3),
    ]


def test_small_blocks_become_large_ones_as_the_run_goes_on(store: Store) -> None:
    run = started(store)
    for sequence in range(1, 65):
        steps = range(64 * (sequence - 1), 64 * sequence)
        losses = columns({"loss": [float(step) for step in steps]}, 64)
        stored(store, run.run, a_batch(run.session, sequence, [step + 1 for step in steps], scalars=losses))
        derived_through(store, run.run)
        compacted(store, run.run)
    entries = [count for (count,) in rows_of(store, run.run, "entries", name="loss", level=0)]
    assert sum(entries) == 63 * 64  # the last batch reaches past a multiple of 64
    assert entries == [512] * 7 + [64] * 7


def ranks(store: Store, run: str) -> list[list[Any]]:
    """Effective ranks at several zooms."""
    with store.read() as conn:
        found = [read_layers(conn, run, "effective_rank", columns=columns) for columns in (1, 5, 10, 80, 1000)]
    return [[one.x, one.mean, one.min, one.max] for one in found]


def test_numbers_that_come_late_are_laid_over_what_is_compacted(store: Store) -> None:
    run = a_plain_run(store, 600)
    early = layer_block(list(range(1, 500)), {"effective_rank": np.ones((499, 3))})
    with store.write() as conn:
        save_derived(conn, run, [DerivedBatch(1, 1, None, [early])])
    compacted(store, run)
    assert rows_of(store, run, "entries", name="effective_rank", level=2) == [(7,)]
    late = layer_block([100, 130, 200], {"effective_rank": np.array([[5, 6, 7], [5, 6, 7], [9, 9, 9]])})
    with store.write() as conn:
        save_derived(conn, run, [DerivedBatch(1, 2, None, [late])])
        save_derived(
            conn, run, [DerivedBatch(1, 3, None, [layer_block([590], {"effective_rank": np.array([[4, 4, 4]])})])]
        )
        answer = read_layers(conn, run, "effective_rank", columns=10)
    assert answer.max.tolist()[2] == [1, 7, 7, 9, 1, 1, 1, 1, 4]
    before = ranks(store, run)
    assert compacted(store, run) == 1
    np.testing.assert_equal(ranks(store, run), before)
    assert rows_of(store, run, "first", "stop", "entries", name="effective_rank", level=2) == [(0, 448, 7)]
    with store.read() as conn:
        left = conn.execute(sa.select(derived_segments.c.batch).where(derived_segments.c.run == run)).scalars().all()
    assert left == [3]  # its last step is among the newest


def test_of_two_that_compact_at_once_one_gives_up(store: Store) -> None:
    run = a_plain_run(store, 200)
    with store.read() as conn:
        one = next_round(conn, run)
    with store.read() as conn:
        other = next_round(conn, run)
    assert one is not None
    assert other is not None
    with store.write() as conn:
        assert write_round(conn, one)
    written = rows_of(store, run, "id", "name")
    with store.write() as conn:
        assert not write_round(conn, other)
    assert rows_of(store, run, "id", "name") == written


def test_a_run_that_is_deleted_meanwhile_is_left_alone(store: Store) -> None:
    run = a_plain_run(store, 200)
    with store.read() as conn:
        made = next_round(conn, run)
    assert made is not None
    with store.write() as conn:
        delete_run(conn, run)
    with store.write() as conn:
        assert not write_round(conn, made)
        assert next_round(conn, run) is None
    assert rows_of(store, run, "id") == []


def test_blocks_go_with_their_run(store: Store) -> None:
    run = a_plain_run(store, 200)
    compacted(store, run)
    assert rows_of(store, run, "id") != []
    with store.write() as conn:
        delete_run(conn, run)
    assert rows_of(store, run, "id") == []


def test_what_is_not_derived_stays_in_segments(store: Store) -> None:
    run = started(store)
    for sequence in range(1, 21):
        stored(store, run.run, a_batch(run.session, sequence, range(16 * sequence - 15, 16 * sequence + 1)))
    assert compacted(store, run.run) == 0
    with store.read() as conn:
        assert compactable_runs(conn) == []
    derived_through(store, run.run)
    with store.read() as conn:
        assert compactable_runs(conn) == [run.run]
    assert compacted(store, run.run) == 1
    with store.write() as conn:
        note_compacted(conn, run.run, 10**6, rounds_of(conn, run.run))
    with store.read() as conn:
        assert compactable_runs(conn) == []


def test_a_gap_alone_and_numbers_far_apart_are_compacted_too(store: Store) -> None:
    run = started(store)
    steps = [0, 10**6, 10**9, 10**12, 10**15]
    stored(store, run.run, a_batch(run.session, 1, []))
    for sequence, step in enumerate(steps[1:], 2):
        losses = columns({"loss": [float(step)]}, 1)
        stored(store, run.run, a_batch(run.session, sequence, [step], scalars=losses))
    noise = Columns(("noise_scale",), np.ones((1, 1)), np.ones((1, 1), np.bool_))
    with store.write() as conn:
        save_derived(conn, run.run, [DerivedBatch(1, 2, (np.array([10**6]), noise))])
    derived_through(store, run.run)
    with store.read() as conn:
        before = [read_series(conn, run.run, ["loss", "noise_scale"], columns=columns) for columns in (1, 2, 1000)]
    assert compacted(store, run.run) == 2
    with store.read() as conn:
        after = [read_series(conn, run.run, ["loss", "noise_scale"], columns=columns) for columns in (1, 2, 1000)]
    assert [one.x.tolist() for one in after] == [one.x.tolist() for one in before]
    assert [one.series["loss"].mean.tolist() for one in after] == [one.series["loss"].mean.tolist() for one in before]
    assert len(rows_of(store, run.run, "id", name="loss", level=0)) == 3


def ranked(store: Store, run: str, batch: int, steps: list[int]) -> None:
    """Derive an effective rank of each layer, the step itself, at these steps."""
    block = layer_block(steps, {"effective_rank": np.outer(steps, np.ones(3))})
    with store.write() as conn:
        save_derived(conn, run, [DerivedBatch(1, batch, None, [block] if steps else [])])


@pytest.mark.parametrize("late", [[], list(range(300, 330))])
@pytest.mark.parametrize("every", [8, 1000])
def test_blocks_are_joined_over_steps_with_fewer_numbers_or_none(store: Store, every: int, late: list[int]) -> None:
    runs = []
    for compacting in (True, False):
        run = started(store)
        for number in range(1, 18):
            steps = list(range(64 * number - 63, 64 * number + 1))
            stored(store, run.run, a_batch(run.session, number, steps, layer_table=TABLE))
            ranked(store, run.run, number, [step for step in steps if not 256 <= step < 385 or step % every == 0])
            if number == 10:
                ranked(store, run.run, 100, late)
            derived_through(store, run.run)
            if compacting:
                compacted(store, run.run)
        runs.append(run.run)
    np.testing.assert_equal(ranks(store, runs[0]), ranks(store, runs[1]))


@pytest.mark.parametrize("columns", [3, 20, 100, 800])
def test_a_question_reads_at_most_eight_buckets_a_column(store: Store, monkeypatch: Any, columns: int) -> None:
    run = a_plain_run(store, 6400, size=64)
    compacted(store, run)
    read: list[int] = []

    def counting(parts: list[Level]) -> list[Level]:
        read.append(sum(len(part.numbers) for part in parts))
        return ordered(parts)

    monkeypatch.setattr(levels, "ordered", counting)
    with store.read() as conn:
        for start, stop in ((None, None), (1003, 5009)):
            read.clear()
            read_layers(conn, run, "grad_norm", start, stop, columns)
            assert 0 < read[-1] <= 8 * columns
            assert sum(read) <= 8 * columns + 2 * 7 * len(read) + 128 // 8  # both ends, and what is in segments


@pytest.mark.usefixtures("small")
def test_of_two_numbers_in_one_place_the_later_batch_counts_in_whatever_order_they_can_go(store: Store) -> None:
    run = a_plain_run(store, 400)
    for batch, steps, rank in ((1, [*range(1, 300), 399], 1), (2, [100, 399], 2), (3, [50, 100], 3)):
        block = layer_block(steps, {"effective_rank": np.full((len(steps), 3), rank)})
        with store.write() as conn:
            save_derived(conn, run, [DerivedBatch(1, batch, None, [block])])
    before = ranks(store, run)
    compacted(store, run)
    np.testing.assert_equal(ranks(store, run), before)
    stored(store, run, a_batch(started(store, resume=run, start_step=500).session, 1, [501]))
    derived_through(store, run)
    assert compacted(store, run) >= 1
    np.testing.assert_equal(ranks(store, run), before)
