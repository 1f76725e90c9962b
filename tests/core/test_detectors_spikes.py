"""loss_spike, gradient_spike and update_norm_spike: when they open, how they end, and what they leave alone."""

import math

import numpy as np
import pytest
from gradspectra_core.alerts import Finding
from gradspectra_core.detectors import LOCAL_RULES, DetectorSet, Observation
from gradspectra_core.detectors.band import Band


def feed(rules: str | tuple[str, ...], **series: list[float | None]) -> list[Finding]:
    """Run rules over series of equal length that start at step 1."""
    detectors = DetectorSet((rules,) if isinstance(rules, str) else rules)
    length = len(next(iter(series.values())))
    found: list[Finding] = []
    for i in range(length):
        found += detectors.observe(Observation(i + 1, **{name: values[i] for name, values in series.items()}))
    return found


def noisy(length: int, level: float = 3.0, spread: float = 0.02, seed: int = 0) -> list[float]:
    return (level * np.exp(spread * np.random.default_rng(seed).normal(size=length))).tolist()


def test_a_loss_spike_opens_at_its_step_and_closes_after_five_calm_points():
    losses = noisy(200)
    losses[119:122] = [6.0, 7.0, 5.0]
    opened, closed = feed("loss_spike", loss=losses)
    assert (opened.change, opened.severity, opened.opened_step, opened.step, opened.value) == (
        "open", "warning", 120, 120, 6.0,
    )  # fmt: skip
    assert opened.threshold == pytest.approx(3.6, rel=0.05)  # a fifth above the median, which 6 deviations are below
    assert opened.evidence["median"] == pytest.approx(3.0, rel=0.02)
    assert opened.evidence["window"]["steps"] == list(range(100, 121))
    assert opened.evidence["window"]["values"] == losses[99:120]
    assert (closed.change, closed.opened_step, closed.step, closed.value) == ("close", 120, 127, 7.0)
    assert closed.evidence["peak_step"] == 121
    assert closed.evidence["settled"] is False


def test_a_spike_that_grows_is_reported_again():
    losses = noisy(150)
    losses[99:103] = [4.5, 4.8, 12.0, 12.5]
    found = feed("loss_spike", loss=losses)
    assert [(f.change, f.step) for f in found] == [("open", 100), ("update", 102), ("close", 108)]
    assert {f.opened_step for f in found} == {100}


def test_a_spike_is_reported_again_from_a_quarter_more_deviations_on():
    losses = noisy(150)
    losses[99:104] = [3.0 * 1.5, 3.0 * 1.5**1.16, 3.0 * 1.5**1.34, 3.0 * 1.5**1.55, 3.0 * 1.5**1.7]
    assert [(f.change, f.step) for f in feed("loss_spike", loss=losses)] == [
        ("open", 100), ("update", 102), ("update", 104), ("close", 109),
    ]  # fmt: skip


def test_a_point_is_calm_again_below_half_of_what_opened_the_episode():
    losses = noisy(160)
    losses[99:100] = [3.0 * 1.5]
    losses[100:120] = [3.0 * 1.13] * 20  # more than half of the fifth that opens
    losses[120:125] = [3.0 * 1.07] * 5
    assert [(f.change, f.step) for f in feed("loss_spike", loss=losses)] == [("open", 100), ("close", 125)]


def test_a_moderate_outlier_of_one_batch_is_no_loss_spike_but_two_in_three_points_are():
    spread = 0.08
    single = noisy(150, spread=spread)
    single[99] = 3.0 * math.exp(8 * spread)
    assert feed("loss_spike", loss=single) == []
    double = list(single)
    double[101] = single[99]
    opened = feed("loss_spike", loss=double)[0]
    assert (opened.change, opened.opened_step, opened.step) == ("open", 100, 102)


@pytest.mark.parametrize(
    ("rule", "series", "alone"),
    [("loss_spike", "loss", 12.0), ("update_norm_spike", "update_norm", 12.0), ("gradient_spike", "grad_norm", 6.0)],
)
def test_spikes_open_just_beyond_their_deviations(rule, series, alone):
    values = noisy(130, spread=0.2)
    band = Band()
    for step, value in enumerate(values[:100]):
        band.judge(value)
        band.add(step, value)
    judged = band.judge(1.0)
    assert judged is not None

    def opened(z: float, *at: int) -> list[int]:
        changed = [judged.centre * math.exp(z * judged.spread) if i in at else value for i, value in enumerate(values)]
        return [f.opened_step for f in feed(rule, **{series: changed})][:1]

    assert opened(alone - 0.2, 100) == []
    assert opened(alone + 0.2, 100) == [101]
    if alone > 6.0:
        assert opened(5.95, 100, 102) == []
        assert opened(7.5, 100, 102) == [101]
        assert opened(7.5, 100, 103) == []


def test_a_loss_that_stays_at_a_new_level_closes_as_settled_and_the_level_becomes_the_reference():
    losses = noisy(100) + noisy(400, level=9.0, seed=1)
    opened, closed = feed("loss_spike", loss=losses)
    assert (opened.step, closed.step, closed.evidence["settled"]) == (101, 300, True)
    assert "settled at this new level" in closed.message


def test_a_fall_of_the_loss_is_no_spike():
    assert feed("loss_spike", loss=noisy(100) + noisy(100, level=0.3)) == []


def test_nothing_is_judged_before_thirty_points():
    losses = noisy(60)
    losses[28] = 30.0
    assert feed("loss_spike", loss=losses) == []
    losses[28], losses[30] = 3.0, 30.0
    assert [f.step for f in feed("loss_spike", loss=losses)] == [31, 36]


def test_zero_and_negative_losses_are_judged_on_a_linear_scale():
    rng = np.random.default_rng(2)
    negative = (-2.0 + 0.1 * rng.normal(size=150)).tolist()
    assert feed("loss_spike", loss=negative) == []
    negative[120] = 1.0
    opened = feed("loss_spike", loss=negative)[0]
    assert (opened.step, opened.evidence["scale"]) == (121, "linear")
    assert opened.threshold == pytest.approx(-2.0 + 6 * opened.evidence["spread"], abs=0.15)


def test_a_loss_of_zero_throughout_opens_only_for_a_real_rise():
    assert feed("loss_spike", loss=[0.0] * 100) == []
    assert feed("loss_spike", loss=[0.0] * 60 + [1e-7] + [0.0] * 10) == []
    assert feed("loss_spike", loss=[0.0] * 60 + [0.5] + [0.0] * 10)[0].step == 61


def test_one_zero_among_positive_losses_neither_fails_nor_alarms():
    losses = noisy(150)
    losses[70] = 0.0
    assert feed("loss_spike", loss=losses) == []


def test_a_flat_loss_does_not_turn_a_ripple_into_a_spike():
    assert feed("loss_spike", loss=[2.0] * 80 + [2.05, 2.1] + [2.0] * 20) == []


def test_absent_and_non_finite_losses_are_not_points():
    losses: list[float | None] = [*noisy(60)]
    losses[40:43] = [None, math.nan, math.inf]
    losses[59] = 20.0
    found = feed("loss_spike", loss=losses)
    assert [f.step for f in found] == [60]
    assert None not in found[0].evidence["window"]["values"]
    assert 43 not in found[0].evidence["window"]["steps"]


def test_extreme_losses_give_numbers_that_json_can_hold():
    for spike in (1e308, 5e-324, -1e308):
        for finding in feed("loss_spike", loss=[1e-300] * 60 + [spike] + [1e-300] * 10):
            assert math.isfinite(finding.evidence["z"])
            assert math.isfinite(finding.evidence["ratio"])


def test_a_gradient_spike_is_a_warning_above_twice_and_critical_above_five_times_the_median():
    for factor, severity in ((1.8, None), (2.5, "warning"), (4.9, "warning"), (5.3, "critical")):
        norms = noisy(100, level=1.0)
        norms[80] = factor
        found = feed("gradient_spike", grad_norm=norms)
        assert [f.severity for f in found[:1]] == ([] if severity is None else [severity]), factor


def test_a_gradient_spike_above_three_times_is_critical_when_the_loss_is_above_its_band():
    norms, losses = noisy(100, level=1.0), noisy(100, seed=1)
    norms[80] = 3.5
    assert feed("gradient_spike", grad_norm=norms, loss=losses)[0].severity == "warning"
    losses[80] = 3.0 * math.exp(2 * 0.02)
    assert feed("gradient_spike", grad_norm=norms, loss=losses)[0].severity == "warning", "a loss within its band"
    losses[80] = 3.0 * math.exp(5 * 0.02)
    assert feed("gradient_spike", grad_norm=norms, loss=losses)[0].severity == "critical"
    norms[80] = 2.8
    assert feed("gradient_spike", grad_norm=norms, loss=losses)[0].severity == "warning"


def test_a_gradient_spike_that_turns_critical_says_so_once():
    norms = noisy(100, level=1.0)
    norms[80:83] = [2.5, 9.0, 9.0]
    found = feed("gradient_spike", grad_norm=norms)
    assert [(f.change, f.severity) for f in found] == [
        ("open", "warning"), ("update", "critical"), ("close", "critical"),
    ]  # fmt: skip


def test_norms_of_zero_and_skipped_steps_are_not_points():
    detectors = DetectorSet(("gradient_spike",))
    for i, norm in enumerate(noisy(100, level=1.0)):
        assert detectors.observe(Observation(3 * i + 1, grad_norm=norm)) == []
        assert detectors.observe(Observation(3 * i + 2, grad_norm=0.0)) == []
        assert detectors.observe(Observation(3 * i + 3, grad_norm=60000.0, skipped=True)) == []


def test_an_update_norm_spike_is_a_warning():
    norms = noisy(100, level=1e-3)
    norms[70] = 1e-2
    opened, closed = feed("update_norm_spike", update_norm=norms)
    assert (opened.severity, opened.step, opened.value, closed.step) == ("warning", 71, 0.01, 76)
    for times, alarms in ((1.9, 0), (2.2, 1)):
        norms[70] = times * 1e-3
        assert sum(f.change == "open" for f in feed("update_norm_spike", update_norm=norms)) == alarms


def restarted(length: int = 2200) -> tuple[list[float], list[float]]:
    """Update norms and learning rates of a cosine schedule that starts again every 1,000 steps."""
    rates = 1e-5 + 1e-3 * 0.5 * (1 + np.cos(math.pi * (np.arange(length) % 1000) / 1000))
    return (rates * np.array(noisy(length, level=2.0, spread=0.1))).tolist(), rates.tolist()


def test_an_update_that_a_restart_of_the_schedule_makes_long_is_no_spike():
    norms, rates = restarted()
    assert feed("update_norm_spike", update_norm=norms)[0].step == 1001, "without the rate it looks like one"
    assert feed("update_norm_spike", update_norm=norms, learning_rate=rates) == []
    norms[1450] *= 20.0
    assert feed("update_norm_spike", update_norm=norms, learning_rate=rates)[0].step == 1451


def test_a_rate_of_zero_or_one_that_is_unknown_explains_nothing():
    norms, rates = noisy(100, level=1e-3), [1e-3] * 100
    norms[70] = 1e-2
    for bad in (None, 0.0, math.nan, math.inf, 1e-320):
        rates[70] = bad
        assert feed("update_norm_spike", update_norm=norms, learning_rate=rates)[0].step == 71, bad


def test_a_state_from_before_the_rate_was_looked_at_is_taken_over():
    norms = noisy(100, level=1e-3)
    detectors = DetectorSet(("update_norm_spike",))
    for i, norm in enumerate(norms[:80]):
        detectors.observe(Observation(i + 1, update_norm=norm))
    state = detectors.state()
    state["rules"]["update_norm_spike"] = state["rules"]["update_norm_spike"]["spike"]
    (opened,) = DetectorSet.restore(state).observe(Observation(81, update_norm=1e-2))
    assert (opened.rule, opened.step) == ("update_norm_spike", 81)


def healthy(length: int, seed: int) -> dict[str, list[float | None]]:
    """A run as logged: falling loss, rate warm-up, noise with a share of wider tails."""
    rng = np.random.default_rng(seed)
    steps = np.arange(1, length + 1)
    warmup = np.minimum(steps / 200, 1.0)

    def noise(spread: float) -> np.ndarray:
        heavy = rng.normal(size=length) * np.where(rng.random(length) < 0.05, 1.7, 1.0)
        return np.exp(spread * heavy)

    return {
        "loss": ((1.5 + 9.0 * np.exp(-steps / 150) + 1.5 * np.exp(-steps / 3000)) * noise(0.06)).tolist(),
        "grad_norm": ((0.4 + 4.0 * np.exp(-steps / 60)) * noise(0.2)).tolist(),
        "update_norm": (3e-3 * warmup * (1 - 0.9 * steps / length) * noise(0.1)).tolist(),
    }


@pytest.mark.parametrize("seed", range(6))
def test_a_healthy_run_raises_no_alarm(seed):
    rules = (*LOCAL_RULES, "update_norm_spike")
    assert feed(rules, **healthy(5000, seed)) == []


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_of_which_every_eighth_norm_is_recorded_raises_no_alarm(seed):
    series = healthy(5000, seed)
    for name in ("grad_norm", "update_norm"):
        series[name] = [value if i % 8 == 0 else None for i, value in enumerate(series[name])]
    assert feed(("gradient_spike", "update_norm_spike"), **series) == []


def test_a_step_that_is_not_after_the_last_one_is_left_out():
    detectors = DetectorSet(("nonfinite",))
    assert len(detectors.observe(Observation(5, loss=math.nan))) == 1
    assert detectors.observe(Observation(5, loss=math.inf)) == []
    assert detectors.observe(Observation(4, grad_norm=math.nan)) == []
    assert [f.change for f in detectors.observe(Observation(1_000_000, grad_norm=math.nan))] == ["update"]


def test_thresholds_can_be_changed_and_unknown_names_are_refused():
    norms = noisy(100, level=1.0)
    norms[80] = 1.5
    detectors = DetectorSet(("gradient_spike",), {"gradient_spike": {"ratio": 1.3}})
    found = [f for i, norm in enumerate(norms) for f in detectors.observe(Observation(i + 1, grad_norm=norm))]
    assert found[0].step == 81
    with pytest.raises(ValueError, match=r"no rule is named 'spike'; there are nonfinite, divergence, loss_spike"):
        DetectorSet(("spike",))
    with pytest.raises(ValueError, match=r"no threshold of loss_spike is named 'zz'; there are z, ratio, confirm_z"):
        DetectorSet(thresholds={"loss_spike": {"zz": 1.0}})
    with pytest.raises(ValueError, match="version 1, got None"):
        DetectorSet.restore({})
