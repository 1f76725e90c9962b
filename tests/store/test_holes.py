"""The columns asked for go to the steps that a run has, also where most steps of the range are missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gradspectra_core.buckets import bucket
from gradspectra_core.pyramid import Level
from gradspectra_store import Store, levels
from gradspectra_store.levels import ordered
from gradspectra_store.ranges import Grid
from gradspectra_store.read import read_layers, read_series
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store.batches import TABLE, a_batch, columns, layer_block, started, stored
from store.compacting import compacted, derived_through


def taken_in(store: Store, run: Any, steps: Sequence[int], every: int = 1, size: int = 64, sequence: int = 1) -> None:
    """Take in steps whose loss is the step, and whose grad_sq, at each `every`-th of them, its square."""
    for number, begin in enumerate(range(0, len(steps), size), sequence):
        own = list(steps[begin : begin + size])
        at = [step for step in own if step % every == 0]
        layers = layer_block(at, {"grad_sq": np.outer(np.square(at, dtype=float), np.ones(3))}) if at else None
        losses = columns({"loss": [float(step) for step in own]}, len(own))
        stored(store, run.run, a_batch(run.session, number, own, layer_table=TABLE, layers=layers, scalars=losses))


def a_run_of(store: Store, steps: Sequence[int], *, compacting: bool = True) -> str:
    run = started(store)
    taken_in(store, run, steps)
    derived_through(store, run.run)
    if compacting:
        compacted(store, run.run)
    return str(run.run)


def widest(steps: np.ndarray, most: int, first: int, last: int) -> int:
    """The width by plain counting: of the steps from first to last, or narrower until half of the columns have some."""
    width = Grid.of(first, last, most).width
    if len(np.unique(steps // width)) == len(steps):
        return width
    while width > 1 and 2 * len(np.unique(steps // width)) < most:
        width //= 2
    return width


def xs(store: Store, run: str, **question: Any) -> tuple[list[int], list[int]]:
    with store.read() as conn:
        series = read_series(conn, run, ["loss"], **question)
        layers = read_layers(conn, run, "grad_norm", **question)
    return series.x.tolist(), layers.x.tolist()


@pytest.mark.parametrize("compacting", [False, True])
def test_a_run_with_a_wide_hole_answers_half_of_the_columns(store: Store, compacting: bool) -> None:
    apart = a_run_of(store, [*range(1, 501), *range(9001, 9501)], compacting=compacting)
    far = a_run_of(store, [*range(1, 501), 1_000_000], compacting=compacting)
    for run, expected in (
        (apart, [1, *range(4, 501, 4), 9001, *range(9004, 9501, 4)]),
        (far, [1, *range(2, 501, 2), 1_000_000]),
    ):
        series, layers = xs(store, run, columns=500)
        assert series == layers == expected


def test_few_steps_far_apart_are_all_answered(store: Store) -> None:
    steps = [1, 2, 3, 1000, 1001, 500_000]
    assert xs(store, a_run_of(store, steps), columns=100) == (steps, steps)


def test_a_growing_run_never_gets_narrower_buckets(store: Store) -> None:
    run = started(store)
    widths = []
    taken_in(store, run, [1, 2], size=2)
    for number, begin in enumerate(range(4000, 4400, 10), 2):
        taken_in(store, run, range(begin, begin + 10), sequence=number)
        with store.read() as conn:
            x = read_series(conn, run.run, ["loss"], columns=32).x
        widths.append(int(np.diff(x[2:-1]).max(initial=1)))
    assert widths == sorted(widths)
    assert widths[-1] == 16


def test_what_is_read_of_a_run_in_bursts_is_bounded_by_the_columns(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run_of(store, [step for begin in range(0, 400_000, 8192) for step in range(begin + 1, begin + 65)])
    read: list[int] = []

    def counting(parts: list[Level]) -> list[Level]:
        found = ordered(parts)
        read.append(sum(len(part.numbers) for part in found))
        return found

    monkeypatch.setattr(levels, "ordered", counting)
    with store.read() as conn:
        answer = read_layers(conn, run, "grad_norm", columns=128)
    assert 64 <= len(answer.x) <= 128
    assert sum(read) <= 8 * 128


@given(data=st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_buckets_are_as_wide_as_a_plain_count_of_steps_says(store: Store, data: st.DataObject) -> None:
    gap = st.sampled_from([1, 2, 9, 100, 5000, 300_000])
    runs = data.draw(st.lists(st.tuples(gap, st.integers(1, 150)), min_size=1, max_size=6), label="gap, length")
    every = data.draw(st.sampled_from([1, 2, 8]), label="every")
    most = data.draw(st.integers(1, 200), label="columns")
    piece = data.draw(st.sampled_from([1, 60, 1 << 20]), label="values a piece")
    steps: list[int] = []
    for distance, length in runs:
        begin = (steps[-1] if steps else 0) + distance
        steps += range(begin, begin + length)
    cut = data.draw(st.sampled_from(steps), label="resumed after")
    run = started(store)
    taken_in(store, run, steps, every, size=23)
    again = started(store, resume=run.run, start_step=cut)
    hole = data.draw(st.sampled_from([1, 64, 7000]), label="first step of the second attempt")
    later = list(range(cut + hole, cut + hole + 40))
    taken_in(store, again, later, every)
    if data.draw(st.booleans(), label="compacted"):
        derived_through(store, run.run)
        compacted(store, run.run)
    seen = np.array([step for step in steps if step <= cut] + later)
    begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(seen))] * 2), label="range"))
    start, stop = (None, None) if begin == end else (int(seen[begin]), int(seen[end - 1]) + 1)
    if start is not None:
        seen = seen[begin:end]

    for patched in (1 << 20, piece):
        with pytest.MonkeyPatch.context() as patch, store.read() as conn:
            patch.setattr("gradspectra_store.ranges.PIECE_VALUES", patched)
            patch.setattr("gradspectra_store.holes.PIECE_VALUES", patched)
            conn = conn.execution_options(segment_cache=None)
            series = read_series(conn, run.run, ["loss"], start, stop, most)
            layers = read_layers(conn, run.run, "grad_sq", start, stop, most)
        measured = seen[seen % every == 0]
        for answer, own in ((series, seen), (layers, measured)):
            if not len(own):
                continue
            sent = [[step for step in of if answer is series or step % every == 0] for of in (steps, later)]
            cuts = [(start or 0, min(stop or 10**9, cut + 1)), (max(start or 0, cut + 1), stop or 10**9)]
            reach = [(max(of[0], a), min(of[-1], b - 1)) for of, (a, b) in zip(sent, cuts, strict=True) if of]
            reach = [(a, b) for a, b in reach if a <= b]
            width = widest(own, most, min(a for a, _ in reach), max(b for _, b in reach))
            values = own[None].astype(np.float64) if answer is series else np.square(own[None]).astype(np.float32)
            x, mean, low, high, *_ = bucket(own, values, np.ones(values.shape, np.bool_), width)
            assert answer.x.tolist() == x.tolist()
            assert min(most / 2, len(own)) <= len(x) <= most
            got = answer.series["loss"] if answer is series else answer
            for name, expected in (("mean", mean), ("min", low), ("max", high)):
                np.testing.assert_array_equal(np.atleast_2d(getattr(got, name))[0], expected[0])
