"""Blocks of two levels found by one statement and read by one: the same blocks as by one for each."""

from __future__ import annotations

import numpy as np
import pytest
from gradspectra_store import Store, block_rows
from gradspectra_store.ahead import Ahead
from gradspectra_store.block_rows import BlockRow, Source, find_blocks
from gradspectra_store.read import read_layers
from gradspectra_store.stretches import Stretch
from store.compacting import a_plain_run, compacted
from store.statements import noted

LEVELS = (0, 1, 2)


def of_small_blocks(store: Store, monkeypatch: pytest.MonkeyPatch, steps: int = 1280) -> Source:
    monkeypatch.setattr(block_rows, "MOST_ENTRIES", 16)
    run = a_plain_run(store, steps, size=64)
    compacted(store, run)
    return Source(run, "layers", False, 0, 0)


def ranges(seed: int) -> list[list[Stretch]]:
    """Up to five stretches each, some of them outside of the run or next to each other."""
    drawn = np.random.default_rng(seed)
    cuts = (np.sort(drawn.integers(0, 1400, 2 * drawn.integers(1, 6))).reshape(-1, 2) for _ in range(60))
    return [[Stretch(1, int(first), int(stop)) for first, stop in cut] for cut in cuts]


def overlapping(every: list[BlockRow], stretches: list[Stretch]) -> list[BlockRow]:
    return [row for row in every if any(row.first < one.stop and row.stop > one.first for one in stretches)]


def test_blocks_of_one_name_are_found_by_the_steps_they_reach_over(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = of_small_blocks(store, monkeypatch)
    with store.read() as conn:
        for level in LEVELS:
            every = find_blocks(conn, source, ["grad_sq"], level, [Stretch(1, 0, 10**6)])
            assert len(every) > 1
            for stretches in ranges(level):
                asked = [one for one in stretches if one.first < one.stop]
                found = find_blocks(conn, source, ["grad_sq"], level, stretches)
                if len(asked) <= 4:
                    assert found == overlapping(every, asked)
                among = find_blocks(conn, source, ["grad_sq", "nothing"], level, stretches)
                assert found == among


def test_what_was_looked_for_ahead_is_what_is_found_without(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    source = of_small_blocks(store, monkeypatch)
    with store.read() as conn:
        for stretches, others in zip(ranges(5), ranges(6), strict=True):
            ahead = Ahead(conn, source, None)
            ahead.look([(["grad_norm"], 2, stretches[:1]), (["grad_sq"], 0, others[:2])])
            for names, level, asked in (
                (["grad_norm"], 2, stretches[:1]),
                (["grad_sq"], 0, others[:2]),
                (["grad_sq"], 0, others),
                (["grad_norm"], 2, others[:1]),
                (["grad_sq"], 1, stretches[:1]),
            ):
                found, alone = ahead.find(names, level, asked), find_blocks(conn, source, names, level, asked)
                assert [row for row in found if row in alone] == alone
                assert {(row.name, row.level) for row in found} <= {(names[0], level)}
                contents = ahead.load(found, ["grad_sq"])
                assert {row.id for row in found} <= contents.keys()


def test_a_question_with_steps_left_at_its_end_takes_three_statements(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_plain_run(store, 6436, size=36)
    compacted(store, run)
    texts = noted(monkeypatch)
    with store.read() as conn:
        conn.execution_options(segment_cache=None)
        read_layers(conn, run, "grad_norm", stop=6330, columns=51)
    assert len(texts) == 3  # the facts, which blocks there are of both levels, their numbers
