"""Levels of 128, 256, 1024 … steps: an answer reads as many buckets as it gives, also where older blocks lack them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradspectra_core.pyramid import Level
from gradspectra_store import Store, levels
from gradspectra_store.ahead import Ahead
from gradspectra_store.block_rows import BlockRow
from gradspectra_store.levels import ordered
from gradspectra_store.read import read_layers, read_series
from store.batches import TABLE, a_batch, columns, layer_block, started, stored
from store.compacting import a_plain_run, compacted, derived_through, rows_of

ZOOMS = (1, 2, 3, 5, 9, 17, 40)


def answers(store: Store, run: str) -> list[list[Any]]:
    with store.read() as conn:
        series = [read_series(conn, run, ["loss"], columns=columns) for columns in ZOOMS]
        layers = [read_layers(conn, run, "grad_norm", columns=columns) for columns in ZOOMS]
    of_series = [[one.x, one.series["loss"].mean, one.series["loss"].min, one.series["loss"].max] for one in series]
    return [*of_series, *([one.x, one.mean, one.min, one.max] for one in layers)]


def goes_on(store: Store, run: Any, numbers: range, *, compacting: bool) -> None:
    """Take in, derive and maybe compact so many more batches of 64 steps."""
    for number in numbers:
        steps = list(range(64 * number - 63, 64 * number + 1))
        values = np.random.default_rng(number).lognormal(size=(64, 3))
        losses = columns({"loss": values[:, 0].tolist()}, 64)
        layers = layer_block(steps, {"grad_sq": values})
        stored(store, run.run, a_batch(run.session, number, steps, layer_table=TABLE, layers=layers, scalars=losses))
        derived_through(store, run.run)
        if compacting:
            compacted(store, run.run)


def test_a_run_whose_older_blocks_lack_them_answers_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    never, always, later = (started(store) for _ in range(3))
    goes_on(store, never, range(1, 41), compacting=False)
    goes_on(store, always, range(1, 41), compacting=True)
    with monkeypatch.context() as patch:
        patch.setattr("gradspectra_store.making_blocks.halfway", lambda _: ())
        goes_on(store, later, range(1, 19), compacting=True)
        assert rows_of(store, later.run, "level", name="loss", level=34) == []
    goes_on(store, later, range(19, 41), compacting=True)
    assert {level for (level,) in rows_of(store, later.run, "level", name="loss")} == {0, 1, 2, 3, 34, 66, 35, 67}
    expected = answers(store, never.run)
    np.testing.assert_equal(answers(store, always.run), expected)
    np.testing.assert_equal(answers(store, later.run), expected)


@pytest.mark.parametrize("columns", [13, 26, 51])
def test_from_64_steps_a_column_a_question_reads_as_many_buckets_as_it_gives(
    store: Store, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    run = a_plain_run(store, 6400, size=64)
    compacted(store, run)
    widest: list[int] = []

    def counting(parts: list[Level]) -> list[Level]:
        widest.append(sum(len(part.numbers) for part in parts))
        return ordered(parts)

    monkeypatch.setattr(levels, "ordered", counting)
    with store.read() as conn:
        found = read_layers(conn, run, "grad_norm", columns=columns)
    assert columns // 2 < len(found.x) <= columns
    assert max(widest) == len(found.x)


def test_a_few_steps_at_the_end_are_read_as_recorded_with_the_same_bits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_plain_run(store, 6436, size=36)
    compacted(store, run)
    asked: list[int] = []

    find = Ahead.find

    def noting(self: Ahead, names: Any, level: int, stretches: Any) -> list[BlockRow]:
        asked.append(level)
        return find(self, names, level, stretches)

    monkeypatch.setattr(Ahead, "find", noting)
    with store.read() as conn:
        found = read_layers(conn, run, "grad_norm", stop=6330, columns=51)
        assert asked == [34, 0]
        monkeypatch.setattr(levels, "FEW", 0)
        forgetful = conn.execution_options(segment_cache=None)
        again = read_layers(forgetful, run, "grad_norm", stop=6330, columns=51)
    assert asked == [34, 0, 34, 2, 1, 0]
    np.testing.assert_equal([found.x, found.mean, found.min, found.max], [again.x, again.mean, again.min, again.max])
