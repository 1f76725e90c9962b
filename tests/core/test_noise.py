"""Gradient noise: the problem whose answer is 26, unequal parts, Adam's moments, and the moving averages."""

import json
import math

import numpy as np
import pytest
import reference
from gradspectra_core.noise import (
    MOMENTS_INDEPENDENCE,
    NoiseAverage,
    adam_terms,
    confidence_of,
    equal_parts,
    noise_scale,
    noise_terms,
    noise_terms_from_sums,
    student_95,
    weight_sums,
)
from hypothesis import given
from hypothesis import strategies as st

UNEQUAL = ([0.25] * 4, [16, 16, 16, 1])
EQUAL = ([0.25] * 4, [8, 8, 8, 8])
PARTS = st.lists(st.tuples(st.floats(0.05, 1), st.integers(1, 64)), min_size=2, max_size=5)


def expected_norms(weights: list[float], examples: list[float], scale: float = 1.0) -> tuple[float, float]:
    """Expected part_sq and grad_sq of a gradient of norm 1 with per-example noise of trace 26."""
    part_sq = sum(w * (1 + 26 / b) for w, b in zip(weights, examples, strict=True))
    grad_sq = 1 + 26 * sum(w * w / b for w, b in zip(weights, examples, strict=True))
    return scale**2 * part_sq, scale**2 * grad_sq


def regression_parts(rng: np.random.Generator, examples: list[int], steps: int = 1) -> list[np.ndarray]:
    """Mean gradients of each part, (steps, 20): x ~ N(0, I₂₀), residual variance 0.25, distance 1 from the optimum."""
    parts = []
    for count in examples:
        x = rng.normal(size=(steps, count, 20))
        parts.append((x * (x[..., :1] + 0.5 * rng.normal(size=(steps, count, 1)))).mean(1))
    return parts


def measured(parts: list[np.ndarray], weights: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """part_sq and grad_sq of each step."""
    gradient = sum(w * g for w, g in zip(weights, parts, strict=True))
    part_sq = sum(w * np.square(g).sum(-1) for w, g in zip(weights, parts, strict=True))
    return part_sq, np.square(gradient).sum(-1)


@pytest.mark.parametrize(("weights", "examples"), [UNEQUAL, EQUAL, ([0.5, 0.3, 0.2], [1, 5, 9])])
@pytest.mark.parametrize("scale", [1.0, 0.25, 65_536.0])
def test_expected_norms_give_back_the_noise_they_were_made_of(weights: list, examples: list, scale: float):
    tr_sigma, signal_sq = noise_terms(*expected_norms(weights, examples, scale), weights, examples)
    assert tr_sigma == pytest.approx(26 * scale**2)
    assert signal_sq == pytest.approx(scale**2)
    assert noise_scale(tr_sigma, signal_sq) == pytest.approx(26)


@pytest.mark.parametrize(("weights", "examples"), [UNEQUAL, EQUAL])
def test_linear_regression_has_noise_scale_26(weights: list[float], examples: list[int]):
    rng = np.random.default_rng(0)
    norms = np.hstack([measured(regression_parts(rng, examples, 4000), weights) for _ in range(10)])
    tr_sigma, signal_sq = noise_terms(*norms, weights, examples)
    assert tr_sigma.mean() == pytest.approx(26, rel=0.02)
    assert signal_sq.mean() == pytest.approx(1, rel=0.04)
    assert noise_scale(tr_sigma.mean(), signal_sq.mean()) == pytest.approx(26, rel=0.04)


def test_the_formula_for_equal_parts_is_wrong_for_unequal_ones():
    part_sq, grad_sq = expected_norms(*UNEQUAL)
    assert noise_scale(*equal_parts(part_sq, grad_sq, 4, 49)) == pytest.approx(94.55, abs=0.01)


@given(st.integers(2, 64), st.integers(1, 64), st.floats(0, 1e3), st.floats(0, 1e3))
def test_equal_parts_are_a_case_of_the_general_formula(parts: int, examples: int, part_sq: float, grad_sq: float):
    general = noise_terms(part_sq, grad_sq, [1 / parts] * parts, [examples] * parts)
    special = equal_parts(part_sq, grad_sq, parts, parts * examples)
    assert special == pytest.approx(general, rel=1e-9, abs=1e-9)


@given(PARTS, st.integers(0, 2**32 - 1))
def test_terms_equal_their_slow_twin(weighted: list[tuple[float, int]], seed: int):
    total = sum(weight for weight, _ in weighted)
    weights, examples = [weight / total for weight, _ in weighted], [count for _, count in weighted]
    parts = list(np.random.default_rng(seed).normal(size=(len(weights), 6)) + 1)
    found = noise_terms(*measured(parts, weights), weights, examples)
    assert found == pytest.approx(reference.noise_terms(parts, weights, examples), rel=1e-6, abs=1e-6)


def test_the_two_sums_over_parts():
    assert weight_sums(*UNEQUAL) == pytest.approx((0.1875 * (3 / 16 + 1), 0.0625 * (3 / 16 + 1)))
    assert weight_sums([1.0], [32]) == pytest.approx((0, 1 / 32))


def test_terms_from_sums_of_many_steps_at_once():
    part_sq, grad_sq = np.array([[9.0, 5.0], [9.0, 5.0]]), np.array([[3.0, 5.0], [3.0, 5.0]])
    tr, signal = noise_terms_from_sums(part_sq, grad_sq, np.array([[0.5], [0.0]]), np.array([[0.25], [1.0]]))
    assert tr[0].tolist() == [12.0, 0.0]
    assert signal[0].tolist() == [0.0, 5.0]
    assert np.isnan(tr[1]).all()
    assert np.isnan(signal[1]).all()


@pytest.mark.parametrize(
    ("weights", "examples", "message"),
    [
        ([0.5, 0.6], [1, 1], "weights must be at least 0 and sum to 1, got"),
        ([1.5, -0.5], [1, 1], "weights must be at least 0 and sum to 1, got"),
        ([math.nan, 1], [1, 1], "weights must be at least 0 and sum to 1, got"),
        ([0.5, 0.5], [1, 0], r"examples of each part must be above 0, got \[1.0, 0.0\]"),
        ([0.5, 0.5], [1], "must be two lists of one length"),
        ([], [], "must be two lists of one length"),
    ],
)
def test_weights_that_are_none_are_refused(weights: list[float], examples: list[float], message: str):
    with pytest.raises(ValueError, match=message):
        noise_terms(1.0, 1.0, weights, examples)


@pytest.mark.parametrize("beta1", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("scale", [1.0, 65_536.0])
def test_adam_moments_give_back_the_noise_they_were_made_of(beta1: float, scale: float):
    noise, signal = 26 / 8, 1.0
    second = scale**2 * (signal + noise)
    first = scale**2 * (signal + noise * (1 - beta1) / (1 + beta1))
    tr_sigma, signal_sq = adam_terms(second, first, 8, beta1)
    assert tr_sigma == pytest.approx(26 * scale**2)
    assert signal_sq == pytest.approx(scale**2)


def test_adam_moments_of_a_simulated_run_give_noise_scale_26():
    rng = np.random.default_rng(1)
    first, second, terms = np.zeros(20), np.zeros(20), []
    for step, gradient in enumerate(regression_parts(rng, [8], 30_000)[0], 1):
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        if step > 300:
            terms.append((float(second.sum()), float(first @ first)))
    tr_sigma, signal_sq = adam_terms(*np.array(terms).T, 8, 0.9)
    assert noise_scale(tr_sigma.mean(), signal_sq.mean()) == pytest.approx(26, rel=0.05)


@pytest.mark.parametrize("beta1", [0.0, 1.0, math.nan])
def test_adam_without_momentum_is_refused(beta1: float):
    with pytest.raises(ValueError, match=f"beta1 must be between 0 and 1, exclusive, got {beta1}"):
        adam_terms(1.0, 1.0, 8, beta1)


def test_a_signal_lost_in_the_noise_has_no_scale():
    assert np.isnan(noise_scale([1.0, 1.0, 1.0], [0.0, -1.0, math.nan])).all()
    assert noise_scale(0.0, 2.0) == 0


HISTORIES = st.lists(st.tuples(st.floats(1, 100), st.floats(0.5, 50)), min_size=8, max_size=40)


@given(HISTORIES, st.sampled_from([3.0, 100.0]))
def test_averages_and_interval_equal_their_slow_twin(history: list[tuple[float, float]], time_constant: float):
    average = NoiseAverage(1, time_constant)
    for tr, signal in history:
        average.update([tr], [signal])
    twin = reference.noise_average([t for t, _ in history], [s for _, s in history], time_constant)
    tr_mean, signal_mean = average.averages()
    low, high = average.interval()
    found = (tr_mean[0], signal_mean[0], average.scale()[0], low[0], high[0])
    assert found == pytest.approx(twin, rel=1e-6)


@given(HISTORIES, st.sampled_from([1.0, 0.5, MOMENTS_INDEPENDENCE]))
def test_steps_that_count_for_less_widen_the_interval(history: list[tuple[float, float]], independence: float):
    average = NoiseAverage(1, 16.0, independence)
    for tr, signal in history:
        average.update([tr], [signal])
    twin = reference.noise_average([t for t, _ in history], [s for _, s in history], 16.0, independence)
    low, high = average.interval()
    assert (low[0], high[0]) == pytest.approx(twin[3:], rel=1e-6)
    assert NoiseAverage.from_state(average.state()).interval() == (low, high)


def test_a_block_of_moments_counts_for_what_its_correlation_leaves():
    rng, keep = np.random.default_rng(5), np.exp(-1 / 50)
    value, total, blocks = rng.normal(size=2000) / np.sqrt(1 - keep**2), np.zeros(2000), []
    for step in range(1, 50 * 60 + 1):
        value = keep * value + rng.normal(size=2000)
        total += value
        if step % 50 == 0:
            blocks.append(total / 50)
            total = np.zeros(2000)
    blocks = np.stack(blocks, axis=1)
    spread, of_mean = np.var(blocks), np.var(np.mean(blocks, axis=1))
    assert spread / 60 / of_mean == pytest.approx(MOMENTS_INDEPENDENCE, rel=0.25)


def test_the_average_is_a_ratio_of_averages():
    average = NoiseAverage(1)
    average.update([1.0], [-1.0])
    assert np.isnan(average.scale()[0])
    average.update([3.0], [3.0])
    assert average.scale()[0] == pytest.approx(2, rel=0.02)


def test_an_absent_or_non_finite_step_leaves_a_layer_as_it_was():
    average = NoiseAverage(4)
    average.update([4.0] * 4, [2.0] * 4)
    before = average.state()
    present = np.array([False, True, True, True])
    average.update([9.0, math.nan, 1.0, 1e200], [9.0, 1.0, math.inf, 1.0], present)
    assert average.state() == before


def test_the_interval_of_a_known_problem_covers_the_truth():
    rng, average = np.random.default_rng(2), NoiseAverage(100)
    for _ in range(150):
        norms = measured(regression_parts(rng, [16] * 4, 100), [0.25] * 4)
        average.update(*noise_terms(*norms, [0.25] * 4, [16] * 4))
    low, high = average.interval()
    assert 88 <= np.sum((low <= 26) & (high >= 26)) <= 100
    assert np.median(high / low) < 1.5


@pytest.mark.parametrize(
    ("freedom", "quantile", "error"),
    [(1, 12.706205, 0.12), (2, 4.302653, 8e-3), (5, 2.570582, 2e-4), (7, 2.364624, 5e-5), (30, 2.042272, 1e-6),
     (200, 1.971896, 1e-6), (1e9, 1.959964, 1e-6)],
)  # fmt: skip
def test_students_quantile_is_that_of_the_tables(freedom: float, quantile: float, error: float):
    assert student_95(freedom) == pytest.approx(quantile, rel=error)


def test_the_interval_of_few_steps_covers_the_truth_as_often_as_that_of_many():
    rng, average = np.random.default_rng(8), NoiseAverage(4000)
    true = rng.lognormal(sigma=0.3, size=(8, 2, 4000)) / np.exp(0.045)
    for tr, signal in true:
        average.update(tr, signal)
    low, high = average.interval()
    assert np.mean((low <= 1) & (high >= 1)) == pytest.approx(0.95, abs=0.012)


def test_confidence_narrows_with_steps_and_is_none_at_first():
    rng = np.random.default_rng(3)
    average = NoiseAverage(2)
    words = []
    for _ in range(300):
        norms = measured(regression_parts(rng, [4] * 4), [0.25] * 4)
        (tr,), (signal,) = noise_terms(*norms, [0.25] * 4, [4] * 4)
        average.update([tr, tr], [signal, signal], np.array([True, False]))
        words.append(average.confidence())
    assert words[6] == [None, None]
    assert words[-1] == ["high", None] or words[-1] == ["medium", None]


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (10, 15, "high"), (10, 15.1, "medium"), (10, 20, "medium"), (10, 20.1, "low"), (10, 40, "low"),
        (10, 40.1, None), (math.nan, math.nan, None), (0, 1, None), (-1, 1, None), (2, 1, None),
    ],
)  # fmt: skip
def test_confidence_by_the_span_of_the_interval(low: float, high: float, word: str | None):
    assert confidence_of(low, high) == word


@given(HISTORIES)
def test_a_saved_state_continues_without_any_difference(history: list[tuple[float, float]]):
    whole, cut = NoiseAverage(2), NoiseAverage(2)
    for tr, signal in history:
        present = np.array([True, tr > 50])
        whole.update([tr, tr], [signal, signal], present)
        cut = NoiseAverage.from_state(json.loads(json.dumps(cut.state(), allow_nan=False)))
        cut.update([tr, tr], [signal, signal], present)
    assert cut.state() == whole.state()


def test_a_state_of_no_layers_is_kept():
    assert NoiseAverage.from_state(NoiseAverage(0).state()).scale().shape == (0,)


def test_wrong_shapes_and_constants_are_refused():
    with pytest.raises(ValueError, match=r"signal_sq must have shape \(2,\), got \(1,\)"):
        NoiseAverage(2).update([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="time_constant above 0, got 1 and 0"):
        NoiseAverage(1, 0)
    with pytest.raises(ValueError, match="independence must be above 0 and at most 1, got 0"):
        NoiseAverage(1, 1, 0)
