"""The robust band: its median and spread against values written the slow way, its floors and its usual spread."""

import math
import statistics

import numpy as np
import pytest
from gradspectra_core.detectors.band import Band


def filled(values: list[float], size: int = 50) -> Band:
    band = Band(size)
    for step, value in enumerate(values, 1):
        band.add(step, value)
    return band


def deviation(values: list[float]) -> float:
    """Median distance from the upper median, times what makes it a standard deviation for normal noise."""
    centre = statistics.median_high(values)
    return 1.4826 * statistics.median_high([abs(value - centre) for value in values])


@pytest.mark.parametrize("seed", range(5))
def test_a_positive_series_is_judged_by_its_logarithm_over_the_last_fifty(seed: int):
    values = np.exp(np.random.default_rng(seed).normal(size=80)).tolist()
    last = [math.log(value) for value in values[-50:]]
    judged = filled(values).judge(20.0)
    assert judged is not None
    assert judged.logarithmic
    assert math.log(judged.centre) == pytest.approx(statistics.median_high(last), abs=1e-12)
    assert judged.spread == pytest.approx(deviation(last), rel=1e-9)
    assert judged.z == pytest.approx((math.log(20.0) - statistics.median_high(last)) / deviation(last), rel=1e-9)
    assert judged.ratio == pytest.approx(20.0 / judged.centre, rel=1e-12)
    assert judged.limit(6.0, 2.0) == pytest.approx(judged.centre * math.exp(6 * judged.spread), rel=1e-12)


def test_a_series_with_negative_values_is_judged_as_it_is():
    values = np.random.default_rng(7).normal(1.0, 2.0, size=50).tolist()
    judged = filled(values).judge(30.0)
    assert judged is not None
    assert not judged.logarithmic
    assert judged.spread == pytest.approx(deviation(values), rel=1e-9)
    assert judged.z == pytest.approx((30.0 - judged.centre) / deviation(values), rel=1e-9)
    assert judged.ratio == pytest.approx(1 + (30.0 - judged.centre) / abs(judged.centre), rel=1e-9)


@pytest.mark.parametrize(("value", "spread"), [(2.0, 0.01), (-2.0, 0.02), (0.0, 1e-6)])
def test_a_flat_series_has_a_spread_of_one_percent_or_one_in_a_million(value: float, spread: float):
    judged = filled([value] * 50).judge(value)
    assert judged is not None
    assert judged.spread == pytest.approx(spread, rel=1e-12)


def test_a_calm_stretch_keeps_the_usual_spread_which_forgets_over_a_hundred_points():
    band = filled(np.exp(0.5 * np.random.default_rng(3).normal(size=50)).tolist())
    first = band.judge(1.0)
    assert first is not None
    for step in range(51, 101):
        band.add(step, 1.0)
    spreads = [judged.spread for judged in map(band.judge, [1.0] * 100) if judged is not None]
    usual = [0.01 + (first.spread - 0.01) * 0.99**judged for judged in range(1, 101)]
    assert spreads == pytest.approx(usual, rel=1e-9)


def test_thirty_values_are_the_fewest_that_judge():
    assert filled([1.0] * 29).judge(1.0) is None
    assert filled([1.0] * 29).centre() is None
    assert filled([1.0] * 30).judge(1.0) is not None


@pytest.mark.parametrize("centre", [1e5, -1e308, 1e308])
def test_the_limit_of_numbers_at_the_end_of_their_range_is_a_number(centre: float):
    values = [centre * (1e-290 if step % 2 and centre == 1e5 else 1 - step / 100) for step in range(50)]
    judged = filled(values).judge(abs(centre))
    assert judged is not None
    assert math.isfinite(judged.limit(6.0, 2.0))
