"""divergence: slow rises, losses that stay up or never come down, and what a schedule or a learner's loss explains."""

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from gradspectra_core.alerts import Finding
from gradspectra_core.detectors import DetectorSet, Observation


def feed(losses: Sequence[float | None], rates: Sequence[float | None] | None = None) -> list[Finding]:
    detectors = DetectorSet(("divergence",))
    found: list[Finding] = []
    for i, loss in enumerate(losses):
        rate = None if rates is None else rates[i]
        found += detectors.observe(Observation(i + 1, loss=loss, learning_rate=rate))
    return found


def learning(length: int, spread: float = 0.03, seed: int = 0) -> np.ndarray:
    """A loss that falls from 10.5 to 3 within some hundred steps."""
    noise = np.exp(spread * np.random.default_rng(seed).normal(size=length))
    return (3.0 + 7.5 * np.exp(-np.arange(length) / 80)) * noise


@pytest.mark.parametrize("doubling", [200, 700])
def test_a_rise_too_slow_for_a_spike_is_critical_and_shown_from_its_beginning(doubling):
    losses = learning(3000)
    losses[1000:] *= 2.0 ** (np.arange(2000) / doubling)
    spikes = DetectorSet(("loss_spike",))
    steps = [Observation(i + 1, loss=loss) for i, loss in enumerate(losses.tolist())]
    assert [f for step in steps for f in spikes.observe(step)] == []
    opened = feed(losses.tolist())[0]
    assert (opened.change, opened.severity, opened.layers) == ("open", "critical", ())
    reached = 1000 + math.log2(1.2) * doubling  # from where on the loss itself is a fifth up; its median lags by 25
    assert reached + 60 < opened.opened_step < reached + 110
    assert opened.opened_step - 49 == opened.evidence["since_step"]
    assert opened.evidence["reference"] == pytest.approx(3.0, rel=0.02)
    assert opened.threshold == pytest.approx(1.2 * opened.evidence["reference"], rel=1e-9)
    window = opened.evidence["window"]
    assert (len(window["steps"]), window["steps"][-1], window["values"][-1]) == (41, opened.step, opened.value)
    assert set(np.diff(window["steps"][:-1]).tolist()) == {10}
    assert f"at step {opened.evidence['since_step']}" in opened.message


def test_a_loss_that_comes_back_closes_halfway_and_one_that_grows_is_reported_again():
    losses = learning(2000)
    losses[1000:1200] *= 2.0
    losses[1100:1200] *= 1.5
    found = feed(losses.tolist())
    assert [f.change for f in found] == ["open", "update", "close"]
    assert {f.opened_step for f in found} == {found[0].step}
    assert found[0].step == pytest.approx(1075, abs=3)
    assert 1.25 * found[0].value < found[1].value < 9.2
    assert found[2].step == pytest.approx(1225, abs=3)
    assert found[2].value == pytest.approx(9.0, rel=0.03)
    assert found[2].evidence["settled"] is False
    assert found[2].message.endswith("; it came back")


def test_a_new_level_settles_and_is_what_later_losses_are_compared_with():
    losses = learning(6000)
    losses[1000:] *= 2.0
    losses[4000:] *= 1.5
    found = feed(losses.tolist())
    assert [(f.change, f.evidence.get("settled")) for f in found] == [
        ("open", None), ("close", True), ("open", None), ("close", True),
    ]  # fmt: skip
    assert found[1].step - found[0].step == 1000
    assert found[2].evidence["reference"] == pytest.approx(6.0, rel=0.03)


def test_a_loss_that_stays_above_where_it_started_is_seen_though_it_never_fell():
    losses = learning(600)
    losses[:] = 10.8 * np.exp(0.01 * np.random.default_rng(1).normal(size=600))
    losses[150:] *= 1.1
    opened = feed(losses.tolist())[0]
    assert (opened.step, opened.evidence["reference_of"]) == (249, "start")
    assert opened.threshold == pytest.approx(10.8 * 1.05, rel=0.01)
    losses[150:] *= 1.04 / 1.1
    assert feed(losses.tolist()) == []
    noisy = 10.8 * np.exp(0.1 * np.random.default_rng(1).normal(size=600))
    noisy[150:] *= 1.12
    assert feed(noisy.tolist()) == [], "a deviation is no rise"


def test_a_rise_of_less_than_a_fifth_or_three_deviations_or_fifty_points_is_none():
    steady = learning(1500, spread=0.02)
    little, short = steady.copy(), steady.copy()
    little[800:] *= 1.18
    short[800:845] *= 3.0
    noisy = learning(1500, spread=0.3, seed=2)
    noisy[800:] *= 1.6
    for losses in (steady, little, short, noisy):
        assert feed(losses.tolist()) == []
    noisy[800:] *= 2.2 / 1.6
    assert [f.change for f in feed(noisy.tolist())] == ["open"]


def cycles(length: int, period: int, low: float = 1e-5, high: float = 1e-3) -> np.ndarray:
    """A cosine schedule with restarts."""
    return low + (high - low) * 0.5 * (1 + np.cos(math.pi * (np.arange(length) % period) / period))


def test_a_loss_that_a_restart_of_the_schedule_raises_is_no_divergence():
    rates = cycles(4000, 1000)
    losses = learning(4000) * (0.3 + 0.7 * rates / 1e-3)  # the lower the rate, the lower the loss it can hold
    assert losses[1100] > 2 * losses[999]
    assert feed(losses.tolist(), rates.tolist()) == []
    assert feed(losses.tolist())[0].change == "open"
    losses[2300:] *= 3.0
    assert feed(losses.tolist(), rates.tolist())[0].change == "open"


def test_a_loss_that_rises_while_the_rate_warms_up_is_seen():
    rates = np.minimum(np.arange(1, 1501) / 1000, 1.0) * 1e-3
    losses = learning(1500)
    losses[600:] *= 1.004 ** np.arange(900)
    opened = feed(losses.tolist(), rates.tolist())[0]
    assert 640 < opened.step < 750


def test_a_loss_that_rises_where_the_rate_falls_is_compared_with_that_of_the_higher_rate():
    rates = np.minimum(np.arange(1, 1501) / 300, 1.0) * 1e-3
    rates[1000:] = rates[39]  # a rate at which the loss was high once, in the warm-up
    losses = learning(1500)
    assert feed(losses.tolist(), rates.tolist()) == []
    losses[1000:] *= 1.5
    assert feed(losses.tolist(), rates.tolist())[0].step == pytest.approx(1075, abs=4)


def test_losses_of_zero_and_below_have_no_level_and_bad_ones_are_no_points():
    rng = np.random.default_rng(4)
    learner = np.concatenate((-2.0 + 0.05 * rng.normal(size=500), 3.0 + 0.05 * rng.normal(size=500)))
    assert feed(learner[:500].tolist() + [-1.0] * 500) == []
    losses: list[float | None] = learning(900).tolist()
    losses[500:600] = [None, math.nan, math.inf, -math.inf] * 25
    assert feed(losses) == []
    assert feed([0.0] * 900) == []


def test_extreme_losses_give_numbers_that_json_can_hold():
    for low, high in ((5e-324, 1e308), (1e-300, 1e300), (1.0, 1e308)):
        found = feed([low] * 300 + [high] * 1400)
        assert [f.change for f in found] == ["open", "close"]
        for finding in found:
            json.dumps([finding.value, finding.threshold, finding.evidence], allow_nan=False)


@pytest.mark.parametrize("seed", range(4))
def test_healthy_runs_of_many_kinds_raise_no_alarm(seed):
    rng = np.random.default_rng(seed)
    rates = np.minimum(np.arange(1, 5001) / 250, 1.0) * cycles(5000, 5000)
    for spread in (0.01, 0.1, 0.4):
        heavy = (3.0 + 7.0 / (1 + np.arange(5000) / 100)) * np.exp(spread * rng.standard_t(3, 5000))
        assert feed(heavy.tolist(), rates.tolist()) == []
        assert feed((2.0 * np.exp(spread * rng.normal(size=5000))).tolist()) == []
