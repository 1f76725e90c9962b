"""Relative learning rates and the norm test: the diagonal quadratic, the slow twin, and bad arguments."""

import math

import numpy as np
import pytest
import reference
from gradspectra_core.multipliers import ALPHA, batch_for_norm_test, layer_multipliers
from hypothesis import given
from hypothesis import strategies as st

# H = diag(1, 10), w = (0.3, 3), noise variance 1 each, B = 4.
LAYERS, RUN, BATCH = [100 / 9, 1 / 900], 2 / 900.09, 4


def test_multipliers_of_a_diagonal_quadratic():
    assert layer_multipliers(LAYERS, RUN, BATCH, ALPHA["sgd"]) == pytest.approx([0.264853, 1.000278], abs=5e-7)
    assert layer_multipliers(LAYERS, RUN, BATCH, ALPHA["adam"]) == pytest.approx([0.514639, 1.000139], abs=5e-7)


def test_sgd_multipliers_follow_the_best_single_step_of_that_quadratic():
    best = [reference.one_step_optimum(1, 0.3, 1, BATCH), reference.one_step_optimum(10, 3, 1, BATCH)]
    assert best == pytest.approx([0.264706, 0.099972], abs=5e-7)
    multipliers = layer_multipliers(LAYERS, RUN, BATCH, 1.0)
    assert multipliers[0] / multipliers[1] == pytest.approx(best[0] * 1 / (best[1] * 10), rel=1e-9)


SCALES = st.lists(st.floats(0, 1e6), min_size=1, max_size=6)


@given(SCALES, st.floats(0, 1e6), st.floats(0.5, 1e6), st.sampled_from([0.5, 1.0]))
def test_multipliers_equal_their_slow_twin(layers: list[float], run: float, batch: float, alpha: float):
    expected = reference.layer_multipliers(layers, run, batch, alpha, (0.25, 4.0))
    assert layer_multipliers(layers, run, batch, alpha) == pytest.approx(expected, rel=1e-12)


@given(SCALES, st.floats(0, 1e6), st.floats(0.5, 1e3))
def test_noisier_layers_get_smaller_rates_and_units_do_not_matter(layers: list[float], run: float, batch: float):
    found = layer_multipliers(layers, run, batch, 1.0, clip=(1e-9, 1e9))
    order = np.argsort(layers)
    assert (np.diff(found[order]) <= 1e-12).all()
    in_batches = layer_multipliers(np.array(layers) / batch, run / batch, 1.0, 1.0, clip=(1e-9, 1e9))
    assert in_batches == pytest.approx(found, rel=1e-9)


def test_multipliers_stay_within_the_clip():
    assert layer_multipliers([1e9, 0.0], 100, 1, 1.0).tolist() == [0.25, 4.0]
    assert layer_multipliers([1e9, 0.0], 100, 1, 1.0, clip=(0.5, 2.0)).tolist() == [0.5, 2.0]


def test_an_unknown_noise_scale_gives_no_multiplier():
    assert np.isnan(layer_multipliers([math.nan, -1.0], 2.0, 1, 1.0)).all()
    assert np.isnan(layer_multipliers([1.0], math.nan, 1, 1.0)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch must be above 0, got 0"),
        ({"batch": math.nan}, "batch must be above 0, got nan"),
        ({"alpha": 0}, r"alpha must be above 0 \(1 for SGD, 0.5 for the Adam family\), got 0"),
        ({"clip": (0.0, 1.0)}, r"clip must be two numbers above 0 in order, got \(0.0, 1.0\)"),
        ({"clip": (2.0, 1.0)}, r"clip must be two numbers above 0 in order, got \(2.0, 1.0\)"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, object], message: str):
    arguments = {"noise_scale_layers": [1.0], "noise_scale_run": 1.0, "batch": 1, "alpha": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        layer_multipliers(**arguments)


def test_the_norm_tests_batch_is_the_noise_scale_over_theta_squared():
    assert batch_for_norm_test(26, 1) == 104
    assert batch_for_norm_test([26, 26], [1, -1], theta=1.0).tolist()[0] == 26
    assert np.isnan(batch_for_norm_test([26], [0])).all()
    with pytest.raises(ValueError, match="theta must be above 0, got 0"):
        batch_for_norm_test(1, 1, theta=0)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0.1, 2))
def test_at_the_norm_tests_batch_the_noise_just_meets_the_bound(tr_sigma: float, signal_sq: float, theta: float):
    batch = batch_for_norm_test(tr_sigma, signal_sq, theta)
    assert tr_sigma / batch == pytest.approx(theta**2 * signal_sq, rel=1e-9)
