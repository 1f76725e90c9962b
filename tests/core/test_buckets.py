"""Buckets over steps: widths, the slow twin, and that spikes and non-finite numbers are never lost."""

import numpy as np
import pytest
import reference
from gradspectra_core.buckets import bucket, bucket_width
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

FIELDS = ("mean", "min", "max", "last", "nonfinite")


@pytest.mark.parametrize(
    ("span", "columns", "width"),
    [(0, 10, 1), (10, 10, 1), (11, 10, 2), (20, 10, 2), (21, 10, 4), (10_000_000, 1000, 16_384), (5, 1, 8), (8, 1, 8)],
)
def test_widths_are_powers_of_two(span: int, columns: int, width: int):
    assert bucket_width(span, columns) == width


@given(st.integers(1, 10**12), st.integers(1, 5000))
def test_the_width_is_the_smallest_that_fits(span: int, columns: int):
    width = bucket_width(span, columns)
    assert span <= width * columns
    assert width == 1 or span > width // 2 * columns


@st.composite
def series(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    steps = np.array(sorted(draw(st.sets(st.integers(1, 60), max_size=20))), np.int64)
    shape = (draw(st.integers(0, 3)), len(steps))
    values = st.floats(-1e3, 1e3) | st.sampled_from([np.nan, np.inf, -np.inf, 1.7e308, -1.7e308])
    return (
        steps,
        draw(hnp.arrays(np.float64, shape, elements=values)),
        draw(hnp.arrays(np.bool_, shape)),
        draw(st.sampled_from([1, 2, 4, 16, 64])),
    )


@given(series())
@example((np.array([1, 2, 3]), np.array([[1.7e308, 1.0, -1.7e308]]), np.ones((1, 3), np.bool_), 4))
def test_buckets_equal_their_slow_twin(given_series: tuple[np.ndarray, np.ndarray, np.ndarray, int]):
    steps, values, present, width = given_series
    x, *columns, there = bucket(steps, values, present, width)
    for row in range(len(values)):
        twin = reference.buckets(steps.tolist(), values[row].tolist(), present[row].tolist(), width)
        assert x.tolist() == list(twin)
        for place, summary in enumerate(twin.values()):
            assert there[row, place] == bool(summary)
            if summary:
                found = {name: column[row, place] for name, column in zip(FIELDS, columns, strict=True)}
                # A mean of large numbers of both signs is as exact as the largest of them allows.
                slack = 1e-12 * np.nanmax(np.abs([summary["min"], summary["max"], 1.0]))
                assert found.pop("mean") == pytest.approx(summary.pop("mean"), rel=1e-9, abs=slack, nan_ok=True)
                assert found == pytest.approx(summary, rel=0, abs=0, nan_ok=True)


def test_a_spike_of_one_step_is_seen_at_every_width():
    steps = np.arange(1, 10_001)
    values = np.ones((1, 10_000))
    values[0, 7776] = 500.0
    for width in (1, 64, 4096, 2**20):
        _, mean, low, high, *_ = bucket(steps, values, np.ones_like(values, np.bool_), width)
        assert high.max() == 500
        assert low.min() == 1
        assert (mean <= high).all()


def test_non_finite_values_are_counted_and_kept_out_of_the_rest():
    values = np.array([[1.0, np.nan, 3.0, np.inf, -np.inf, np.inf, np.nan, 7.0]])
    present = np.array([[True, True, True, True, True, True, True, False]])
    x, mean, low, high, last, nonfinite, there = bucket(np.arange(2, 10), values, present, 2)
    assert x.tolist() == [2, 4, 6, 8]
    assert mean[0].tolist()[:2] == [1, 3]
    assert last[0].tolist()[:2] == [1, 3]
    assert np.isnan([mean[0, 2], last[0, 2], mean[0, 3], low[0, 3], high[0, 3], last[0, 3]]).all()
    assert (low[0, 2], high[0, 2]) == (-np.inf, np.inf)
    assert nonfinite.tolist() == [[1, 1, 2, 1]]
    assert there.all()


def test_only_buckets_that_hold_a_step_are_given_and_absence_is_told():
    steps = np.array([1, 2, 1000, 1001])
    present = np.array([[True, True, False, False], [False, True, True, False]])
    x, mean, *_, nonfinite, there = bucket(steps, np.arange(8).reshape(2, 4), present, 4)
    assert x.tolist() == [1, 1000]
    assert there.tolist() == [[True, False], [True, True]]
    assert mean[0, 0] == 0.5
    assert np.isnan(mean[0, 1])
    assert mean[1].tolist() == [5, 6]
    assert nonfinite.tolist() == [[0, 0], [0, 0]]


def test_a_series_of_nothing_but_nan_is_nan():
    _, *columns, nonfinite, there = bucket(np.array([3]), np.array([[np.nan]]), np.array([[True]]), 1)
    assert np.isnan(columns).all()
    assert (nonfinite.tolist(), there.tolist()) == ([[1]], [[True]])


def test_a_mean_is_right_where_the_sum_is_beyond_float64():
    mean = bucket(np.array([2, 3]), np.array([[1.7e308, 1.5e308]]), np.ones((1, 2), np.bool_), 2)[1]
    assert mean[0, 0] == pytest.approx(1.6e308)


def test_no_steps_give_no_buckets():
    x, mean, *_, nonfinite, there = bucket(np.zeros(0, np.int64), np.zeros((3, 0)), np.zeros((3, 0), np.bool_), 8)
    assert x.shape == (0,)
    assert mean.shape == nonfinite.shape == there.shape == (3, 0)


def test_bad_widths_and_columns_are_refused():
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        bucket_width(10, 0)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        bucket(np.arange(1, 3), np.zeros((1, 2)), np.ones((1, 2), np.bool_), 0)
