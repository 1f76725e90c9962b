"""The pyramid: each level from the one below, the same bits in whatever pieces it is made, and a plain float64 twin."""

from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import reference
from gradspectra_core import slots
from gradspectra_core.buckets import bucket, level_of, shown
from gradspectra_core.pyramid import Level, coarser, joined, leaves, stacked
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 3.0e38, -3.0e38, 1e-45]


@st.composite
def recorded(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps = np.array(sorted(draw(st.sets(st.integers(0, 700), min_size=1, max_size=60))), np.int64)
    shape = (draw(st.integers(1, 3)), len(steps))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    numbers = st.floats(-1e6, 1e6, width=32) | st.sampled_from(SPECIAL).map(lambda x: float(np.float32(x)))
    present = draw(hnp.arrays(np.bool_, shape) | st.just(np.ones(shape, np.bool_)))
    return steps, draw(hnp.arrays(dtype, shape, elements=numbers)), present


def raised(level: Level, times: int, dtype: np.dtype) -> Level:
    for _ in range(times):
        level = coarser(level, dtype=dtype)
    return level


def assert_same(one: Level, other: Level) -> None:
    np.testing.assert_array_equal(one.numbers, other.numbers)
    np.testing.assert_array_equal(one.first, other.first)
    for got, expected in zip(shown(one), shown(other), strict=True):
        np.testing.assert_array_equal(got, expected)


def assert_same_bits(one: Level, other: Level) -> None:
    assert_same(one, other)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(shown(one), shown(other), strict=True))


@given(recorded(), st.integers(1, 4), st.integers(0, 700), st.booleans())
def test_pieces_that_meet_anywhere_give_the_same_bits(numbers, top: int, at: int, last: bool):
    steps, values, present = numbers
    whole = leaves(steps, values, present, last=last)
    cut = int(np.searchsorted(steps, at))
    pieces = [whole.cut(slice(cut, None)), whole.cut(slice(0, cut))]
    expected = raised(whole, top, values.dtype)
    assert_same(raised(joined(pieces), top, values.dtype), expected)
    edge = at // 8**top * 8**top  # pieces that meet at the edge of a bucket may be made coarser on their own
    cut = int(np.searchsorted(steps, edge))
    parts = [leaves(steps[p], values[:, p], present[:, p], last=last) for p in (slice(0, cut), slice(cut, None))]
    assert_same(joined([raised(part, top, values.dtype) for part in parts]), expected)


@given(recorded(), st.sampled_from([1, 2, 4, 8, 16, 64, 512, 1024]))
def test_every_width_equals_the_plain_float64_twin(numbers, width: int):
    steps, values, present = numbers
    x, mean, low, high, last, nonfinite, there = bucket(steps, values, present, width)
    slack = 2e-6 if values.dtype == np.float32 else 1e-12
    for row in range(len(values)):
        own = values[row].astype(np.float64)
        twin = reference.buckets(steps.tolist(), own.tolist(), present[row].tolist(), width)
        assert x.tolist() == list(twin)
        for place, summary in enumerate(twin.values()):
            assert there[row, place] == bool(summary)
            if summary:
                held = own[present[row] & (steps // width == steps[np.searchsorted(steps, x[place])] // width)]
                largest = np.abs(held[np.isfinite(held)]).max(initial=1.0)
                assert mean[row, place] == pytest.approx(summary["mean"], rel=slack, abs=slack * largest, nan_ok=True)
                found = {"min": low, "max": high, "last": last, "nonfinite": nonfinite}
                for name, array in found.items():
                    np.testing.assert_array_equal(array[row, place], summary[name])  # ±0 are equal


@given(recorded(), recorded(), st.integers(1, 3))
def test_stacked_rows_are_what_each_is_alone(one, other, top: int):
    alone = [leaves(steps, values.astype(np.float64), present, last=True) for steps, values, present in (one, other)]
    both = raised(stacked(alone), top, np.dtype(np.float64))
    begin = 0
    for level in alone:
        expected = raised(level, top, np.dtype(np.float64))
        rows = np.arange(begin, begin + level.rows)
        begin += level.rows
        at = np.searchsorted(both.numbers, expected.numbers)
        assert_same_numbers(both.select(rows).cut(at), expected)


@given(
    recorded(), st.integers(0, 2), st.sampled_from([1, 2, 4]), st.lists(st.integers(0, 40), max_size=4), st.booleans()
)
def test_levels_in_pieces_are_shown_as_they_are_in_one(numbers, top: int, factor: int, at: list[int], last: bool):
    steps, values, present = numbers
    whole = raised(leaves(steps, values, None if present.all() else present, last=last), top, values.dtype)
    cuts = [0, *sorted(min(cut, len(whole.numbers)) for cut in at), len(whole.numbers)]
    pieces = [whole.cut(slice(*cut)) for cut in pairwise(cuts)]
    for got, expected in zip(shown(pieces, factor), shown(whole, factor), strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype


@given(recorded(), st.sampled_from([2, 4, 8]), st.booleans())
def test_few_buckets_are_added_up_to_the_bits_that_many_are(numbers, factor: int, last: bool):
    steps, values, present = numbers
    found = []
    for most in (slots._SMALL, -1):
        with mock.patch.object(slots, "_SMALL", most):
            level = coarser(leaves(steps, values, present, last=last), factor, values.dtype)
            found.append(coarser(level, factor, values.dtype))
    assert_same_bits(*found)


@given(st.data(), st.sampled_from([np.float32, np.float64]), st.sampled_from([2, 4, 8]), st.sampled_from([1, 1 << 15]))
def test_the_mean_of_even_weights_has_the_bits_of_the_sum_by_parts(data, dtype: type, factor: int, most: int):
    about = np.finfo(dtype)
    odd = st.sampled_from([-0.0, float(about.max), float(about.smallest_subnormal)])
    shape = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 40)))
    alike = st.just(np.full(shape, -0.0, dtype))
    values = data.draw(hnp.arrays(dtype, shape, elements=st.floats(-1e6, 1e6, width=32) | odd) | alike)
    first = data.draw(st.integers(8, 16))
    level = leaves(np.arange(first, first + shape[1]), values, None, last=False)
    found = []
    for small in (slots._SMALL, -1):
        with mock.patch.object(slots, "_SMALL", small), mock.patch.object(slots, "_IN_CACHE", most):
            found.append(coarser(coarser(level, factor, level.mean.dtype), 2))
    assert_same_bits(*found)


def test_an_array_that_stands_for_mean_and_extremes_still_does_when_cut_chosen_from_and_joined():
    values = np.arange(12, dtype=np.float32).reshape(2, 6)
    whole = leaves(np.arange(6), values, None, last=True)
    parts = whole.cut(slice(0, 3)), whole.cut(slice(3, 6))
    for level in (*parts, joined(parts), whole.select(np.array([1])), whole.select(np.array([1, -1]))):
        assert level.mean is level.low is level.high is level.last
    assert joined(parts).mean.tolist() == values.tolist()
    assert whole.select(np.array([1, -1])).mean.tolist() == [values[1].tolist(), [0.0] * 6]


@given(recorded(), st.sampled_from([2, 4, 8]), st.booleans(), st.sampled_from([None, np.dtype(np.float32)]))
def test_buckets_alone_in_wider_ones_are_what_adding_up_makes_of_them(numbers, factor: int, last: bool, dtype):
    steps, values, present = numbers
    level = leaves(steps * factor, values, present, last=last)
    found = coarser(level, factor, dtype)
    with mock.patch.object(slots.Slots, "alone", False):
        assert_same_bits(found, coarser(level, factor, dtype))


def test_pieces_that_lie_between_each_other_are_put_in_order():
    values = np.arange(12, dtype=np.float32).reshape(2, 6)
    whole = leaves(np.arange(6), values, None, last=True)
    x, mean, *_ = shown([whole.cut(slice(0, 6, 2)), whole.cut(slice(1, 6, 2))])
    assert (x.tolist(), mean.tolist()) == (list(range(6)), values.tolist())


def assert_same_numbers(one: Level, other: Level) -> None:
    np.testing.assert_array_equal(one.numbers, other.numbers)
    for got, expected in zip(shown(one)[1:], shown(other)[1:], strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_spike_of_one_step_is_in_every_level():
    values = np.ones((1, 100_000), np.float32)
    values[0, 77_777] = 500.0
    level = leaves(np.arange(100_000), values, None, last=False)
    for number in range(1, 7):
        level = coarser(level, dtype=np.dtype(np.float32))
        at = np.flatnonzero(level.numbers == 77_777 // 8**number)
        assert (level.high[0, at].item(), level.low[0, at].item()) == (500.0, 1.0)
        assert int(level.finite.sum()) == 100_000


def test_what_float32_cannot_hold_becomes_its_largest():
    level = coarser(leaves(np.arange(8), np.full((1, 8), 1e300), None, last=False), dtype=np.dtype(np.float32))
    assert level.high.tolist() == [[np.finfo(np.float32).max]]
    assert level.nan is None


def test_rows_that_a_block_does_not_have_are_absent():
    level = leaves(np.array([3, 4]), np.array([[1.0, 2.0], [5.0, np.nan]]), None, last=False)
    chosen = level.select(np.array([1, 7, -1]))
    *_, nonfinite, there = shown(chosen)
    assert (chosen.mean.tolist(), nonfinite.tolist()) == ([[5, 0], [0, 0], [0, 0]], [[0, 1], [0, 0], [0, 0]])
    assert there.tolist() == [[True, True], [False, False], [False, False]]


@pytest.mark.parametrize(("width", "level"), [(1, 0), (4, 0), (8, 1), (32, 1), (64, 2), (16_384, 4)])
def test_the_level_is_the_coarsest_that_fits(width: int, level: int):
    assert level_of(width) == level


def test_buckets_that_lie_in_wider_ones_by_themselves_stay_as_they_are():
    values = np.array([[-0.0, 1e300, 2.5], [np.inf, -1e300, np.nan]])
    level = leaves(np.array([3, 17, 40]), values, None, last=True)
    wider = coarser(level, 8, np.dtype(np.float32))
    largest = np.finfo(np.float32).max
    assert wider.numbers.tolist() == [0, 2, 5]
    assert wider.first.tolist() == [3, 17, 40]
    for array in (wider.mean, wider.low, wider.high):
        assert array.dtype == np.float32
        assert array.tolist() == [[0.0, largest, 2.5], [0.0, -largest, 0.0]]
        assert not np.signbit(array[0, 0])
    assert wider.finite.tolist() == [[1, 1, 1], [0, 1, 0]]
    assert wider.nan is not None
    assert wider.up is not None
    assert wider.nan.tolist() == [[0, 0, 0], [0, 0, 1]]
    assert wider.up.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert coarser(level).mean.tolist() == [[0.0, 1e300, 2.5], [0.0, -1e300, 0.0]]


def test_a_mean_of_the_largest_numbers_is_no_larger():
    steps = np.array([1, 2, 64, 128, 129], np.int64)
    level = leaves(steps, np.full((1, 5), np.finfo(np.float64).max), np.ones((1, 5), np.bool_), last=False)
    wide = coarser(coarser(level, 64), 4)  # weights 2/5 + 1/5 + 2/5 add up to more than 1
    assert wide.mean.tolist() == wide.high.tolist() == [[np.finfo(np.float64).max]]
