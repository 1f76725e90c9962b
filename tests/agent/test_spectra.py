"""Spectra as they are recorded, and when which layer's is taken."""

from __future__ import annotations

import math

import pytest
import torch
from agent.watched_training import attention, loss_of, watched
from gradspectra import spectra as spectra_module
from gradspectra.budget import Budget
from gradspectra.explain import too_large_in_words
from gradspectra.inventory import take_inventory
from gradspectra.layer_choice import choice_of
from gradspectra.singular import GRAM, SVD, gram_of, singular_values_of_gram
from gradspectra.spectra import LOOKS, SHORTEST_INTERVAL, Spectra
from gradspectra_core.records import AGGREGATES
from gradspectra_core.spectrum import aggregates
from torch import nn


def exact_spectrum(matrix):
    return torch.linalg.svdvals(matrix.detach().double().flatten(1)).numpy()


def test_each_block_is_seen_as_its_matrix_and_before_clipping(kept):
    torch.manual_seed(0)
    model = nn.ModuleDict({"qkv": nn.Linear(12, 36), "conv": nn.Conv2d(3, 8, 3), "embed": nn.Embedding(40, 6)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, spectra=1):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        weight = model["qkv"].weight.grad
        expected = {f"qkv.weight[{s}]": exact_spectrum(part) for s, part in zip("qkv", weight.chunk(3), strict=True)}
        expected |= {f"{name}.weight": exact_spectrum(model[name].weight.grad) for name in ("conv", "embed")}
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
    (record,) = kept()
    found = {record.table.names[spectrum.layer]: spectrum for spectrum in record.spectra}
    assert set(found) == set(expected)
    for name, exact in expected.items():
        spectrum = found[name]
        assert spectrum.aggregates == pytest.approx(aggregates(exact), rel=2e-6), AGGREGATES
        assert spectrum.values == pytest.approx(exact, rel=1e-5)
        assert (spectrum.of, spectrum.method) == ("gradient", "gram-float64")
    assert (found["conv.weight"].rows, found["conv.weight"].columns) == (8, 27)
    assert (found["embed.weight"].rows, found["embed.weight"].columns) == (40, 6)


def test_a_layer_whose_small_values_drown_in_rounding_comes_by_an_svd_until_they_do_not(kept, monkeypatch):
    torch.manual_seed(0)
    grams = []

    def gram(matrix):
        grams.append(len(kept()))
        return gram_of(matrix)

    monkeypatch.setattr("gradspectra.singular.gram_of", gram)
    model = nn.Linear(40, 30, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    drowned = torch.randn(30, 1) @ torch.randn(1, 40)
    gradients = [drowned, drowned, torch.randn(30, 40), torch.randn(30, 40)]
    with watched(model, optimizer, spectra=1, budget=None):
        for gradient in gradients:
            model.weight.grad = gradient.clone()
            optimizer.step()
    found = [record.spectra[0] for record in kept()]
    assert [spectrum.method for spectrum in found] == [SVD, SVD, SVD, GRAM]
    assert len(grams) == 2, "the first, and once the third has shown that it does"
    for spectrum, gradient in zip(found, gradients, strict=True):
        assert spectrum.aggregates[:5] == pytest.approx(aggregates(exact_spectrum(gradient))[:5], rel=1e-7)
    by_gram = aggregates(singular_values_of_gram(gram_of(drowned)))
    assert abs(by_gram[4] - aggregates(exact_spectrum(drowned))[4]) > 1e-7, "else this shows nothing"


def test_at_most_96_values_are_kept_for_drawing(kept):
    model = nn.Linear(150, 130, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, spectra=1):
        model.weight.grad = torch.randn_like(model.weight)
        exact = exact_spectrum(model.weight.grad)
        optimizer.step()
    spectrum = kept()[0].spectra[0]
    assert len(spectrum.values) == len(spectrum.index) == 96
    assert spectrum.index[:33].tolist() == list(range(33))
    assert spectrum.index[-1] == 129
    assert spectrum.values == pytest.approx(exact[spectrum.index], rel=1e-5)


def test_values_clipped_one_by_one_are_seen_before(kept):
    model = nn.Linear(8, 6, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, spectra=1):
        model.weight.grad = torch.randn_like(model.weight)
        exact = exact_spectrum(model.weight.grad)
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
        optimizer.step()
    assert len(kept()[0].spectra) == 1
    assert kept()[0].spectra[0].values == pytest.approx(exact, rel=1e-5)


def test_an_interval_staggers_the_layers_over_its_steps(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, spectra=10):
        for step in range(20):
            loss_of(model, 4, step).backward()
            optimizer.step()
            optimizer.zero_grad()
    steps = {}
    for record in kept():
        assert len(record.spectra) <= 1
        for spectrum in record.spectra:
            steps.setdefault(record.table.names[spectrum.layer], []).append(record.step)
    matrices = ["embed.weight", "qkv.weight[q]", "qkv.weight[k]", "qkv.weight[v]", "head.weight"]
    assert sorted(steps) == sorted(matrices)
    assert all(later - earlier == 10 for earlier, later in steps.values())


def test_gradients_that_are_absent_zero_or_not_finite_have_no_spectrum(kept):
    model = nn.ModuleDict({name: nn.Linear(4, 4, bias=False) for name in ("absent", "zero", "broken")})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, spectra=1):
        model["zero"].weight.grad = torch.zeros(4, 4)
        model["broken"].weight.grad = torch.full((4, 4), math.inf)
        optimizer.step()
    assert kept()[0].spectra == []


def test_a_tensor_of_three_axes_that_is_cut_along_its_second_is_no_matrix():
    model = nn.ModuleDict({"conv": nn.Conv1d(4, 6, 3, bias=False), "head": nn.Linear(4, 6, bias=False)})
    inventory = take_inventory({"": model}, [], lambda _: (("[a]", 1, 0, 2), ("[b]", 1, 2, 4)))
    spectra = Spectra(inventory, 1, Budget(None, 1, True))
    assert spectra.without == ["conv.weight[a]", "conv.weight[b]"]
    assert [inventory.table.names[c.layer] for c in spectra.candidates] == ["head.weight[a]", "head.weight[b]"]


def planned(budget):
    model = attention()
    inventory = take_inventory({"": model}, [], choice_of(None))
    return Spectra(inventory, None, budget)


def known_budget(step_seconds):
    budget = Budget(0.01, 1, True)
    for _ in range(40):
        budget.step_done(step_seconds, 0.0, 0.0001 * step_seconds, 0.0, 0.0)
    return budget


def test_a_spectrum_longer_than_a_twentieth_of_a_step_is_skipped_and_said():
    spectra = planned(known_budget(1e-4))
    assert spectra.due(1) == []
    assert len(spectra.too_large) == 6
    spectra._budget.step_seconds = spectra._budget.savings = 1.0
    (taken,) = spectra.due(2)
    assert len(spectra.too_large) == 5, "the steps are longer by now: one is taken after all"
    assert taken.tensor.name not in spectra.too_large
    spectra = planned(known_budget(0.1))
    assert [c.tensor.name for c in spectra.due(1)] == ["embed.weight"]
    assert spectra.too_large == {}


def many(budget, tensors=8):
    model = nn.ParameterDict({f"experts_{n}": torch.randn(16, 6, 5) for n in range(tensors)})
    inventory = take_inventory({"": model}, [], choice_of(None))
    return Spectra(inventory, None, budget), inventory


def test_of_very_many_that_are_too_large_a_step_looks_at_a_few_in_turn():
    spectra, _ = many(known_budget(1e-4))
    assert [spectra.due(step) for step in (1, 2)] == [[], []]
    assert len(spectra.candidates) == 128
    assert len(spectra.too_large) == 2 * LOOKS
    assert [spectra.due(step) for step in (3, 4, 5)] == [[], [], []]
    assert len(spectra.too_large) == 128
    spectra._budget.step_seconds = spectra._budget.savings = 1.0
    (taken,) = spectra.due(6)
    assert spectra.candidates.index(taken) == 5 * LOOKS % 128


def test_blocks_of_one_tensor_that_are_too_large_are_told_together():
    spectra, _ = many(known_budget(1e-4), 1)
    spectra.due(1)
    spectra.too_large |= {"alone[3]": 0.25, "experts_0[5]": 0.5, "qkv.weight[q]": 0.1, "qkv.weight[k]": 0.1}
    assert too_large_in_words(spectra.too_large) == [
        "no spectrum of alone[3]: it would take 2.5e+02 ms, over 5% of a step",
        "no spectrum of 16 blocks of experts_0: each would take up to 5e+02 ms, over 5% of a step",
        "no spectrum of qkv.weight[k]: it would take 1e+02 ms, over 5% of a step",
        "no spectrum of qkv.weight[q]: it would take 1e+02 ms, over 5% of a step",
    ]


def test_what_very_many_spectra_cost_together_is_added_up_now_and_then(monkeypatch):
    monkeypatch.setattr(spectra_module, "PLANNED", 50)
    budget = known_budget(1.0)
    spectra, _ = many(budget)
    laps = []
    for candidate in spectra.candidates[:6]:
        spectra._learn(candidate, 10 * candidate.expected * spectra._speed)
        laps.append(budget.lap_seconds)
    assert laps[0] == laps[1] < laps[2] == laps[3] == laps[4] < laps[5]


def test_no_layer_comes_more_often_than_the_shortest_interval():
    spectra = planned(known_budget(0.5))
    for candidate in spectra.candidates:
        candidate.taken = 100
    assert spectra.due(100 + SHORTEST_INTERVAL - 1) == []
    assert len(spectra.due(100 + SHORTEST_INTERVAL)) == 1
