"""What the pairs of steps with and without the agent's work say of its cost, on steps whose true cost is known."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from agent.watched_training import KeepingTransport, attention, loss_of, watched
from gradspectra.budget import Budget
from gradspectra.measure import FirstTier
from gradspectra.off_steps import OFTEN, SELDOM, OffSteps
from gradspectra.pairs import BLOCK, Pairs, Work

STEP = 0.1


class Training:
    """Steps of 0.1 s under a budget. The agent's work has a part that its clock does not see.

    hidden: in the same step, and what is left for the next, as shares of what the clock sees of the layers; beside,
    sending: what these truly cost, as shares of what they are taken to cost; threads: how much there is of both.
    noise: of a step, as a share; slow: how many steps take far longer; drift: how far the machine's speed goes up and
    down.
    """

    def __init__(self, share=0.01, every=1, layers=0.003, noise=0.02, slow=0.03, drift=0.2, seed=0, **truth):
        self.budget = Budget(share, every, True)
        self.layers, self.noise, self.slow, self.drift = layers, noise, slow, drift
        self.hidden = truth.get("hidden", (0.0, 0.0))
        self.of_beside, self.of_sending = truth.get("beside", 1.0), truth.get("sending", 1.0)
        self.threads = truth.get("threads", 1.0)
        self.draw = np.random.default_rng(seed)
        self.number, self.left, self.spent, self.wall = 0, 0.0, 0.0, 0.0
        self.cadences = []

    def follow(self, steps):
        self.spent = self.wall = 0.0
        for _ in range(steps):
            self.step()
        return self

    def step(self):
        self.number += 1
        draw, budget = self.draw, self.budget
        speed = 1 + self.drift * np.sin(self.number / 500)
        bare = STEP * speed * (1 + self.noise * draw.normal())
        bare *= 1 + (3 * draw.exponential() if draw.random() < self.slow else 0.0)
        layers = self.layers * speed * (1 + 0.2 * draw.exponential()) if budget.due(self.number) else None
        spectra = 0.001 * speed if budget.pays(0.001) else 0.0
        beside = self.threads * 0.002 * speed if self.number % 23 < 4 else 0.0
        sending = self.threads * 0.004 if draw.random() < bare / STEP / 15 else 0.0
        usual = self.layers * 1.15 * speed if layers else 0.0
        own = 0.0001 + (layers or 0.0) + spectra
        unseen = self.hidden[0] * usual + self.left + self.of_beside * beside + self.of_sending * sending
        self.left = self.hidden[1] * usual
        budget.step_done(bare + own + unseen, 0.0001, layers, spectra, sending, beside=beside)
        self.spent += own + unseen
        self.wall += bare + own + unseen
        self.cadences.append(budget.cadence)

    @property
    def truth(self):
        return self.spent / self.wall


@pytest.mark.parametrize(
    "truth",
    [
        {"hidden": (0.0, 1.0)},
        {"hidden": (1.5, 0.0)},
        {"hidden": (0.5, 1.0)},
        {"hidden": (0.0, 0.0)},
        {"beside": 4.0},
        {"beside": 0.2, "sending": 0.3},
        {"sending": 2.0, "hidden": (0.0, 0.5)},
    ],
)
def test_what_is_reported_comes_to_the_truth(truth):
    training = Training(layers=0.006, **truth).follow(4000)
    status = training.budget.status()
    assert 0.85 < status["overhead"] / training.truth < 1.15
    assert abs(status["overhead"] - training.truth) < 4 * status["overhead_error"]
    assert status["overhead_error"] < 0.001
    assert status["steps_compared"] > 100


def test_the_clock_alone_would_have_been_far_from_it():
    training = Training(layers=0.006, hidden=(1.0, 1.0), threads=0.2).follow(4000)
    assert training.budget.status()["overhead_clocked"] < 0.7 * training.truth
    assert 0.75 < training.budget.overhead / training.truth < 1.25


@pytest.mark.parametrize(("layers", "hidden"), [(0.004, (0.0, 0.0)), (0.002, (0.0, 1.0)), (0.001, (1.0, 1.0))])
def test_the_budget_is_kept_on_the_truth_and_the_cadence_keeps_still(layers, hidden):
    training = Training(layers=layers, hidden=hidden, threads=0.2).follow(2500).follow(4000)
    assert 0.007 < training.truth < 0.012
    settled = training.cadences[2500:]
    assert sum(a != b for a, b in itertools.pairwise(settled)) <= 8


def test_with_little_evidence_the_clock_is_believed():
    training = Training(layers=0.006, noise=0.3, hidden=(0.0, 1.0)).follow(2 * BLOCK)
    status = training.budget.status()
    assert status["overhead"] == pytest.approx(status["overhead_clocked"], rel=0.2)
    few = Training(layers=0.006).follow(BLOCK)
    assert few.budget.status()["overhead_error"] is None
    assert few.budget.overhead == few.budget.status()["overhead_clocked"]
    assert few.budget.status()["steps_compared"] == 0


def test_on_a_machine_with_much_noise_the_report_stays_near_the_truth_and_says_how_unsure_it_is():
    quiet, busy = (Training(layers=0.006, noise=noise, slow=0.1).follow(3000) for noise in (0.02, 0.2))
    for training in (quiet, busy):
        assert 0.7 < training.budget.overhead / training.truth < 1.3
    assert busy.budget.status()["overhead_error"] > 2 * quiet.budget.status()["overhead_error"]


def test_long_steps_with_more_of_the_threads_in_them_are_not_taken_for_their_doing():
    training = Training(layers=0.006, noise=0.3, slow=0.0).follow(6000)
    assert training.budget.overhead < 1.25 * training.truth


def test_a_pause_and_what_follows_it_count_for_nothing():
    pairs, told = Pairs(), []
    for number in range(4 * BLOCK):
        if number % 8 == 5:
            pairs.passed()
        else:
            told.append(pairs.add(STEP, STEP, Work(layers=0.001) if number % 8 == 4 else Work()))
    assert told.count(True) == len(told) // BLOCK
    assert pairs.factors == (1.0, 1.0, 1.0, 1.0) == Pairs().factors


def test_steps_that_take_no_time_say_nothing():
    pairs = Pairs()
    assert not any(pairs.add(0.0, 0.0, Work()) for _ in range(BLOCK))
    assert pairs.hidden() == (0.0, 0.0)


@pytest.mark.parametrize("cadence", [1, 2])
@pytest.mark.parametrize(("tight", "one_in"), [(False, OFTEN), (True, SELDOM)])
def test_a_cadence_that_leaves_no_steps_to_compare_with_leaves_some_out(cadence, tight, one_in):
    off_steps = OffSteps(1, True)
    found = [step for step in range(1, 20 * SELDOM * cadence + 1) if off_steps.due(step, cadence, tight)]
    left_out = 20 * SELDOM - len(found)
    assert 0.5 * 20 * SELDOM / one_in < left_out < 1.5 * 20 * SELDOM / one_in
    assert all(step % cadence == 0 for step in found)
    assert off_steps.due(1, 1, tight) == off_steps.due(1, 1, tight)


def test_at_coarser_cadences_the_turns_move_ahead_and_no_interval_becomes_longer():
    off_steps = OffSteps(5, True)
    found = [step for step in range(1, 40 * 13 * 8) if off_steps.due(step, 40, False)]
    assert set(np.diff(found)) == {35, 40}
    assert {step % 40 for step in found} == set(range(0, 40, 5))
    assert len(found) == pytest.approx(8 * 13, rel=0.02)


def test_the_turns_of_parts_stay_among_those_of_layers():
    off_steps = OffSteps(1, True)
    layers, parts = set(), set()
    for step in range(1, 2000):
        layers |= {step} if off_steps.due(step, 4, False) else set()
        parts |= {step} if off_steps.turn(step, 16) else set()
    assert parts < layers
    assert len(parts) > 110


def test_without_a_budget_every_step_asked_for_is_measured_and_steps_between_are_compared():
    training = Training(share=None, every=8, layers=0.006, hidden=(0.0, 1.0))
    found = [step for step in range(1, 200) if Budget(None, 8, True).due(step)]
    assert found == list(range(8, 200, 8))
    training.follow(3000)
    assert 0.85 < training.budget.overhead / training.truth < 1.15
    each = Training(share=None, layers=0.0006, hidden=(0.0, 0.0)).follow(2000)
    assert all(Budget(None, 1, True).due(step) for step in range(1, 100))
    assert each.budget.overhead == pytest.approx(each.budget.status()["overhead_clocked"], rel=0.1)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only goes on when told to: clock[0] is the time."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.usefixtures("kept")
def test_a_training_reports_what_measuring_makes_slower_after_the_agents_clock_has_stopped(clock, monkeypatch):
    monkeypatch.setenv("GRADSPECTRA_FUSED", "off")
    take, draw, taken = FirstTier.take, np.random.default_rng(0), []

    def slow(*arguments):
        clock[0] += 0.002
        taken.append(clock[0])
        return take(*arguments)

    monkeypatch.setattr(FirstTier, "take", slow)
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    began, spent, hidden = clock[0], 0.0, 0.0
    with watched(model, optimizer, budget=0.01, second_tier="off", drift="off") as watch:
        for step in range(1200):
            loss_of(model, 2, step % 7).backward()
            clock[0] += STEP * (1 + 0.01 * draw.normal()) + hidden
            before = len(taken)
            optimizer.step()
            optimizer.zero_grad()
            hidden = 0.004 if len(taken) > before else 0.0
            spent += 0.002 * (len(taken) - before) + hidden
        truth = spent / (clock[0] - began)
        status = watch.status()
    assert status["overhead_clocked"] < 0.5 * truth
    assert 0.85 < watch.overhead / truth < 1.15
    assert status["overhead"] == watch.overhead == KeepingTransport.last.overhead
    assert status["cadence_layers"] == 8, "with 2 ms of 100 it would be 2"
    assert truth < 0.011
