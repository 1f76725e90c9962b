"""What else is compiled, against numpy: the extremes of an output, the median of a sample, and how far weights are."""

from __future__ import annotations

import numpy as np
import pytest
from gradspectra.compiling import MOST_BLOCKS, SAMPLE, compilation
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

NAN, INF = float("nan"), float("inf")
NUMBERS = st.floats(width=32, allow_nan=True, allow_infinity=True)


@pytest.fixture(scope="module")
def compiled():
    why_not = str(compilation().exception() or "")
    if "no C compiler" in why_not:
        pytest.skip(why_not)
    assert why_not == "", "where there is a compiler there is a pass"
    return compilation().result()


def extremes(compiled, *outputs):
    found = np.array([-1.0, 0.0])
    for output in outputs:
        compiled.extremes(output.size, output.ctypes.data, found.ctypes.data, 1)
    return found.tolist()


@given(numbers=arrays(np.float32, st.integers(0, 70), elements=NUMBERS))
def test_extremes_are_those_of_the_finite_entries(compiled, numbers):
    finite = np.abs(numbers[np.isfinite(numbers)])
    assert extremes(compiled, numbers) == [finite.max() if len(finite) else -1.0, numbers.size - len(finite)]


def test_extremes_of_several_outputs_are_put_together(compiled):
    first, second, broken = (np.array(x, np.float32) for x in ([-3, 1], [2, NAN, -INF], [NAN]))
    assert extremes(compiled, first, second, broken) == [3.0, 3.0]
    assert extremes(compiled, broken, second, first) == [3.0, 3.0]
    assert extremes(compiled, broken) == [-1.0, 1.0]
    assert extremes(compiled, np.array([-0.0], np.float32)) == [0.0, 0.0]
    assert extremes(compiled, np.full(3, 1e-45, np.float32)) == [np.float32(1e-45), 0.0]


def median(compiled, numbers, stride=1):
    table, found = np.zeros(1, SAMPLE), np.zeros(1)
    table[0] = (numbers.ctypes.data, 0, 0, 0, 0, -(-numbers.size // stride), 1, stride)
    compiled.medians(1, table.ctypes.data, found.ctypes.data, 1)
    return found[0]


@given(
    numbers=arrays(np.float32, st.integers(1, 90), elements=st.floats(width=32, allow_nan=False)),
    stride=st.integers(1, 5),
)
def test_a_median_is_the_lower_of_the_two_in_the_middle(compiled, numbers, stride):
    chosen = np.sort(numbers[::stride])
    assert median(compiled, numbers, stride) == chosen[(len(chosen) - 1) // 2]


@pytest.mark.parametrize("size", [MOST_BLOCKS - 1, MOST_BLOCKS])
def test_a_median_of_as_many_numbers_as_there_can_be(compiled, size):
    numbers = np.random.default_rng(size).exponential(size=size).astype(np.float32) ** 9
    assert median(compiled, numbers) == np.sort(numbers)[(size - 1) // 2]
    numbers[: size // 2 + 1] = 0.0
    assert median(compiled, numbers) == 0.0


def test_a_median_reads_no_more_blocks_than_it_has_room_for(compiled):
    numbers = np.arange(3 * MOST_BLOCKS, dtype=np.float32)
    assert median(compiled, numbers) == (MOST_BLOCKS - 1) // 2


@pytest.mark.parametrize("place", [0, 7, 9])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_median_with_a_nan_is_none_and_infinities_are_numbers(compiled, place, sign):
    numbers = np.arange(10, dtype=np.float32)
    numbers[place] = np.copysign(NAN, sign)
    assert np.isnan(median(compiled, numbers))
    assert median(compiled, np.array([sign * INF, sign * INF, 1.0], np.float32)) == sign * INF
    assert np.isnan(median(compiled, np.zeros(0, np.float32)))


@pytest.mark.parametrize(("blocks", "width", "stride"), [(1, 1, 1), (1, 5000, 5000), (300, 16, 48), (7, 16, 976)])
def test_drift_is_that_of_float64(compiled, blocks, width, stride):
    draw = np.random.default_rng(blocks)
    now = draw.standard_normal(blocks * stride, np.float32)
    start = now.reshape(blocks, stride)[:, :width] + 1e-3 * draw.standard_normal((blocks, width), np.float32)
    table, found = np.zeros(2, SAMPLE), np.zeros((2, 2))
    table[:] = (now.ctypes.data, start.ctypes.data, 0, 0, 0, blocks, width, stride)
    compiled.drift(2, table.ctypes.data, found.ctypes.data, 1)
    of_now, of_start = now.reshape(blocks, stride)[:, :width].astype(np.float64), start.astype(np.float64)
    assert found[1].tolist() == found[0].tolist()
    assert found[0, 0] == pytest.approx(((of_now - of_start) ** 2).sum(), rel=1e-5)
    assert found[0, 1] == pytest.approx((of_now * of_start).sum(), rel=1e-5)


def decoded(upper, lower):
    """Whole numbers from their bits, one by one."""
    half = len(lower)
    nibbles = [lower[i] % 16 if i < half else lower[i - half] // 16 for i in range(len(upper))]
    return np.array([16 * int(high) + int(low) for high, low in zip(upper, nibbles, strict=True)], np.float64)


@pytest.mark.parametrize(
    ("blocks", "width", "stride"),
    [(1, 1, 1), (1, 7, 7), (1, 16, 16), (1, 5001, 5001), (128, 16, 48), (301, 16, 48), (7, 16, 976)],
)
def test_drift_from_a_start_in_codes_is_that_of_float64(compiled, blocks, width, stride):
    draw, step = np.random.default_rng(width), 2.0**-18
    half = (blocks + 1) // 2 * width if blocks > 1 else (width + 1) // 2
    upper, lower = draw.integers(-(1 << 15), 1 << 15, blocks * width, np.int16), draw.integers(0, 256, half, np.uint8)
    start = step * decoded(upper, lower).reshape(blocks, width)
    now = draw.standard_normal(blocks * stride, np.float32)
    rows = now.reshape(blocks, stride)[:, :width]
    rows[:] = start + 1e-3 * rows
    table, found = np.zeros(2, SAMPLE), np.zeros((2, 2))
    table[:] = (now.ctypes.data, upper.ctypes.data, lower.ctypes.data, half, step, blocks, width, stride)
    compiled.drift(2, table.ctypes.data, found.ctypes.data, 1)
    assert found[1].tolist() == found[0].tolist()
    assert found[0, 0] == pytest.approx(((rows.astype(np.float64) - start) ** 2).sum(), rel=1e-5)
    assert found[0, 1] == pytest.approx((rows * start).sum(), rel=1e-5)


def test_weights_that_are_not_finite_have_no_finite_distance(compiled):
    table, found = np.zeros(1, SAMPLE), np.zeros((1, 2))
    now, start = np.array([NAN, 1.0], np.float32), np.zeros(2, np.float32)
    table[0] = (now.ctypes.data, start.ctypes.data, 0, 0, 0, 1, 2, 2)
    compiled.drift(1, table.ctypes.data, found.ctypes.data, 1)
    assert np.isnan(found).all()
