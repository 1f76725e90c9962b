"""What is expected to take too much of a step is looked at again, and is measured once it takes less."""

from __future__ import annotations

import pytest
import torch
from gradspectra.budget import Budget
from gradspectra.inventory import take_inventory
from gradspectra.layer_choice import choice_of
from gradspectra.second_tier import SecondTier
from gradspectra.spectra import Spectra
from torch import nn

LARGE, SMALL = "large.weight", "small.weight"


def tier_of(**layers):
    model = nn.ModuleDict(layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    budget = Budget(0.5, 1, False)
    tier = SecondTier(take_inventory({"": model}, [optimizer], choice_of(None)), budget)
    for _ in range(40):
        budget.step_done(0.1, 0.0, 1e-5, 0.0, 0.0)
    return tier


def follow(tier, steps, cost):
    """Give the units their turns. cost: true seconds of one by the name of its first tensor; says who was measured."""
    measured = []
    for step in range(1, steps + 1):
        units = tier.due()
        names = [unit.tensors[0].name for unit in units]
        for unit in units:
            unit.taken = step
        seconds = sum(cost(name) for name in names)
        if units:
            tier.learn(units, seconds)
        tier._budget.step_done(0.1 + seconds, 0.0, 1e-5, 0.0, 0.0, seconds)
        measured.append(names)
    return measured


def two():
    return tier_of(small=nn.Linear(40, 50, bias=False), large=nn.Linear(4000, 500, bias=False))


def test_a_tensor_whose_guess_is_too_large_is_measured_after_a_while_and_no_longer_said_to_be_left_out():
    tier = two()
    first = follow(tier, 4, lambda name: 1e-3 if name == LARGE else 7e-5)
    assert list(tier.too_large) == [LARGE]
    assert first == [[SMALL]] * 4
    later = follow(tier, 60, lambda name: 1e-3 if name == LARGE else 7e-5)
    assert tier.too_large == {}
    assert sum(LARGE in names for names in later) > 20
    assert follow(tier, 20, lambda name: 1e-3 if name == LARGE else 7e-5).count([]) < 10


def test_a_tensor_that_proves_to_take_too_much_is_left_out_again_and_seldom_tried():
    tier = two()
    tried = follow(tier, 600, lambda name: 9e-3 if name == LARGE else 7e-5)
    assert 1 <= sum(LARGE in names for names in tried) <= 10
    assert tier.too_large[LARGE] <= 9.5e-3
    assert sum(SMALL in names for names in tried) > 500


def test_what_is_expected_to_take_many_times_too_much_is_not_tried():
    tier = tier_of(small=nn.Linear(40, 50, bias=False), large=nn.Linear(5000, 3000, bias=False))
    tried = follow(tier, 300, lambda _: 7e-5)
    assert not any(LARGE in names for names in tried)
    assert list(tier.too_large) == [LARGE]


def test_a_speed_that_was_learned_when_all_was_slow_does_not_stay():
    tier = two()
    tier._speed = 4.0
    follow(tier, 40, lambda name: 1e-3 if name == LARGE else 7e-5)
    assert tier._speed < 1.6
    assert tier.too_large == {}


@pytest.mark.parametrize("true_cost", [1e-3, 9e-3])
def test_a_spectrum_whose_guess_is_too_large_is_taken_after_a_while(true_cost):
    model = nn.ModuleDict({"small": nn.Linear(8, 8, bias=False), "large": nn.Linear(300, 300, bias=False)})
    budget = Budget(0.5, 1, True)
    for _ in range(40):
        budget.step_done(0.1, 0.0, 1e-5, 0.0, 0.0)
    spectra = Spectra(take_inventory({"": model}, [], choice_of(None)), None, budget)
    large = spectra.candidates[1]
    large.expected = 0.01
    taken = []
    for step in range(1, 3000):
        budget.savings = 0.05
        for candidate in spectra.due(step):
            candidate.taken = step
            taken.append(step if candidate is large else 0)
            spectra._learn(candidate, true_cost if candidate is large else candidate.expected * spectra._speed)
        if step == 2:
            assert list(spectra.too_large) == [LARGE]
    tries = sum(map(bool, taken))
    assert spectra.too_large == {} if true_cost < 5e-3 else list(spectra.too_large) == [LARGE]
    assert tries > 20 if true_cost < 5e-3 else 1 <= tries <= 40
