"""Recorded numbers put together: a plain twin by dictionary says what is where."""

import numpy as np
from gradspectra_core.blocks import Recorded
from gradspectra_core.recorded import between, overlaid
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


@st.composite
def parts(draw: st.DrawFn) -> list[Recorded]:
    found = []
    for _ in range(draw(st.integers(0, 4))):
        steps = np.array(sorted(draw(st.sets(st.integers(0, 30), max_size=8))), np.int64)
        shape = draw(st.integers(1, 3)), len(steps)
        values = draw(hnp.arrays(np.float32, shape, elements=st.floats(-9, 9, width=32)))
        found.append(Recorded(steps, values, draw(st.none() | hnp.arrays(np.bool_, shape))))
    return found


@given(parts())
def test_later_parts_lie_over_earlier_ones_and_absence_hides_nothing(given_parts: list[Recorded]):
    twin: dict[tuple[int, int], float] = {}
    for part in given_parts:
        for row, column in np.ndindex(part.values.shape):
            if part.present is None or part.present[row, column]:
                twin[row, int(part.steps[column])] = float(part.values[row, column])
    whole = overlaid(given_parts, 3)
    assert whole.steps.tolist() == sorted({step for _, step in twin})
    assert whole.values.shape == (3, len(whole.steps))
    present = np.ones(whole.values.shape, np.bool_) if whole.present is None else whole.present
    found = {
        (row, int(whole.steps[column])): float(whole.values[row, column])
        for row, column in np.argwhere(present).tolist()
    }
    assert found == twin


@given(parts(), st.integers(0, 31), st.integers(0, 31))
def test_a_cut_keeps_the_steps_in_its_range(given_parts: list[Recorded], first: int, stop: int):
    for part in given_parts:
        cut = between(part, first, max(first, stop))
        keep = (part.steps >= first) & (part.steps < stop)
        np.testing.assert_array_equal(cut.steps, part.steps[keep])
        np.testing.assert_array_equal(cut.values, part.values[:, keep])
        assert (cut.present is None) == (part.present is None)


def test_integers_and_floats_become_float64_together():
    one = Recorded(np.array([1]), np.array([[2**40]]), None)
    other = Recorded(np.array([2]), np.array([[0.5]], np.float32), None)
    assert overlaid([one, other], 1).values.tolist() == [[2.0**40, 0.5]]
