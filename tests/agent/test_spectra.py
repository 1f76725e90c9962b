"""Spectra against a float64 SVD, and when which layer's is taken."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from agent.watched_training import attention, loss_of, watched
from gradspectra.budget import Budget
from gradspectra.inventory import choice_of, take_inventory
from gradspectra.spectra import SHORTEST_INTERVAL, Spectra, singular_values
from gradspectra_core.records import AGGREGATES
from gradspectra_core.spectrum import aggregates
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn


@settings(max_examples=40)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10), st.floats(-12, 12))
def test_singular_values_are_those_of_a_float64_svd(rows, columns, rank, power):
    generator = torch.Generator().manual_seed(rows * 31 + columns)
    left = torch.randn(rows, rank + 1, generator=generator, dtype=torch.float64)
    matrix = (left @ torch.randn(rank + 1, columns, generator=generator, dtype=torch.float64) * 10.0**power).float()
    exact = torch.linalg.svdvals(matrix.double()).numpy()
    found = singular_values(matrix)
    assert found.shape == (min(rows, columns),)
    assert np.all(np.diff(found) <= 0)
    assert np.allclose(found, exact, rtol=1e-9, atol=2e-8 * exact[0])


def test_a_matrix_with_a_number_that_is_not_finite_has_none():
    matrix = torch.ones(3, 4)
    matrix[1, 2] = math.nan
    assert np.isnan(singular_values(matrix)).all()


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
    spectra = planned(known_budget(0.1))
    assert [c.tensor.name for c in spectra.due(1)] == ["embed.weight"]
    assert spectra.too_large == {}


def test_no_layer_comes_more_often_than_the_shortest_interval():
    spectra = planned(known_budget(0.5))
    for candidate in spectra.candidates:
        candidate.taken = 100
    assert spectra.due(100 + SHORTEST_INTERVAL - 1) == []
    assert len(spectra.due(100 + SHORTEST_INTERVAL)) == 1
