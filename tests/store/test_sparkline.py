"""The small curve of a run's loss: however a run is cut into batches, it keeps what it keeps of the whole."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from gradspectra_store import ingest, sparkline
from gradspectra_store.database import Store
from gradspectra_store.run_views import get_run
from gradspectra_store.schema import JsonText
from hypothesis import given
from hypothesis import strategies as st
from store.batches import a_batch, started, stored


def reference(steps: list[int], losses: list[float]) -> dict[str, Any]:
    """The last loss of each bucket, at the smallest width with which no more than 60 buckets are there."""
    width = 1
    while True:
        last = {step // width: (step, loss) for step, loss in zip(steps, losses, strict=True)}
        if len(last) <= sparkline.POINTS:
            kept = list(last.values())
            return {"width": width, "steps": [step for step, _ in kept], "losses": [loss for _, loss in kept]}
        width *= 2


@given(st.lists(st.integers(1, 9), max_size=300), st.lists(st.integers(1, 80), min_size=1, max_size=9), st.data())
def test_it_does_not_matter_how_a_run_is_cut(gaps: list[int], sizes: list[int], data: st.DataObject) -> None:
    steps = np.cumsum(np.array(gaps, np.int64))
    losses = 1.0 / np.arange(1, len(steps) + 1)
    there = np.array(data.draw(st.lists(st.booleans(), min_size=len(steps), max_size=len(steps))), np.bool_)
    line, begin, at = sparkline.empty(), 0, 0
    while begin < len(steps):
        part = slice(begin, begin + sizes[at % len(sizes)])
        line = sparkline.extended(line, steps[part], losses[part], there[part])
        begin, at = part.stop, at + 1
    assert line == reference(steps[there].tolist(), losses[there].tolist())


def test_the_curve_of_the_batch_before_is_not_parsed_again(store: Store, monkeypatch: Any) -> None:
    run = started(store)
    parsed: list[str] = []
    monkeypatch.setattr(
        JsonText, "process_result_value", lambda _self, text, _: parsed.append(text) or json.loads(text)
    )
    for sequence in range(1, 5):
        stored(store, run.run, a_batch(run.session, sequence, [sequence]))
    assert not [text for text in parsed if '"losses":[1' in text]
    ingest._lines.clear()  # as after a restart
    stored(store, run.run, a_batch(run.session, 5, [5]))
    assert json.loads(parsed[-1])["steps"] == [1, 2, 3, 4]


def test_a_bounded_number_of_curves_is_known(store: Store, monkeypatch: Any) -> None:
    monkeypatch.setattr(ingest, "KNOWN_LINES", 2)
    runs = [started(store) for _ in range(3)]
    for sequence in range(1, 4):
        for at, run in enumerate(runs):
            stored(store, run.run, a_batch(run.session, sequence, [10 * sequence + at]))
            assert len(ingest._lines) <= 2
    with store.read() as conn:
        assert all(len(get_run(conn, run.run)["sparkline"]) == 3 for run in runs)
