"""The small curve of a run's loss: however a run is cut into batches, it keeps what it keeps of the whole."""

from __future__ import annotations

from typing import Any

import numpy as np
from gradspectra_store import sparkline
from gradspectra_store.schema import JsonText
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects.sqlite import dialect

DIALECT = dialect()


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


@given(st.lists(st.floats(), max_size=60), st.integers(0, 2**53))
def test_its_text_is_what_the_database_keeps_everywhere(losses: list[float], begin: int) -> None:
    line = {"width": 1, "steps": [begin + at for at in range(len(losses))], "losses": losses}
    text, kept = sparkline.to_text(line), JsonText()
    for read in (sparkline.from_text(text), kept.process_result_value(text, DIALECT)):
        assert repr(read) == repr(line)  # to the last bit, NaN and -0 too
    assert repr(sparkline.from_text(str(kept.process_bind_param(line, DIALECT)))) == repr(line)
