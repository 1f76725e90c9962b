"""Spectra of sharded layers from the numbers of all ranks, each rank made in turn in one process without the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent.experts import matrices, mixture
from agent.fake_ranks import Wide, as_rank, give_gradients, sharded
from agent.ways.ranks import Mixed
from gradspectra import shard_spectra
from gradspectra.budget import Budget
from gradspectra.exchange import Whole
from gradspectra.inventory import take_inventory
from gradspectra.layer_choice import choice_of
from gradspectra.shard_spectra import OFF, PAYS, TOO_LARGE, WAITS, ShardSpectra
from gradspectra.spectra import SHORTEST_INTERVAL


def spectra_of(model, mesh, rank=0, interval=1, budget=None, wanted=True):
    """The spectra of a model that is sharded as this rank has it, its gradient with it."""
    shards = sharded(model, mesh)
    give_gradients(shards, {name: p.grad for name, p in model.named_parameters()}, rank, mesh)
    inventory = take_inventory({"": shards}, [], choice_of(None), True)
    return ShardSpectra(inventory, interval, budget or Budget(None, 1, True), rank == 0, wanted), inventory.table.names


def with_gradients(model):
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def whole_of(numbers, ready=()):
    return Whole(np.array([ready]), None, None, None, None, numbers, 0.0)


def exact(model):
    """Singular values of the whole gradients, in float64, by layer name."""
    found = {name: p.grad.double().numpy() for name, p in model.named_parameters() if p.dim() > 1}
    for name, axis in (("c_attn.weight", 1), ("in_proj_weight", 0), ("wide.qkv.weight", 0)):
        blocks = np.split(found.pop(name), 3, axis)
        found |= {f"{name}[{suffix}]": block for suffix, block in zip("qkv", blocks, strict=True)}
    return {name: np.linalg.svd(g.reshape(len(g), -1), compute_uv=False) for name, g in found.items()}


def put_together(model, ranks):
    """The spectra that rank 0 makes of the numbers of all ranks, by layer name; the other ranks make none."""
    total = 0
    for rank in reversed(range(ranks)):
        with as_rank(rank, ranks) as mesh:
            spectra, names = spectra_of(model, mesh, rank)
            planned = spectra.planned(1)
            numbers = spectra.numbers(planned)
            assert len(numbers) == spectra.numbers_of(planned) <= spectra.room
            total = total + numbers
            found = {names[s.layer]: s for s in spectra.adopt(planned, whole_of(total), 1)}
            assert rank == 0 or not found
    return found


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_slices_of_all_ranks_give_the_singular_values_of_the_whole(ranks):
    model = with_gradients(Wide())
    found, expected = put_together(model, ranks), exact(model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].values == pytest.approx(values, rel=1e-6), name


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_experts_of_all_ranks_have_the_singular_values_of_their_own_part(ranks):
    model = with_gradients(mixture())
    found = put_together(model, ranks)
    expected = matrices({name: p.grad for name, p in model.named_parameters()})
    assert found.keys() == expected.keys()
    for name, matrix in expected.items():
        assert (found[name].rows, found[name].columns) == tuple(matrix.shape)
        assert found[name].values == pytest.approx(torch.linalg.svdvals(matrix).numpy(), rel=1e-6), name


def test_no_more_numbers_are_exchanged_than_the_matrix_or_its_smaller_gram_has(monkeypatch):
    with as_rank(0, 2) as mesh:
        spectra, names = spectra_of(Mixed(), mesh)
        sizes = {names[c.layer]: spectra.numbers_of([c]) for c in spectra.candidates}
        assert sizes == {
            "embed.weight": 12 * 12,
            **{f"c_attn.weight[{s}]": 12 * 12 for s in "qkv"},
            **{f"in_proj_weight[{s}]": 12 * 12 for s in "qkv"},
            "conv.weight": 5 * 36,
            "up.weight": 5 * 5,
            "down.weight": 7 * 31,
            "head.weight": 5 * 7,
        }
        monkeypatch.setattr(shard_spectra, "MOST_NUMBERS", 12 * 12)
        spectra, _ = spectra_of(Mixed(), mesh)
    assert sorted(spectra.too_many) == ["conv.weight", "down.weight"]
    assert {names[c.layer] for c in spectra.candidates} == sizes.keys() - {"conv.weight", "down.weight"}


def test_layers_without_a_gradient_or_with_one_that_is_not_finite_have_no_spectrum():
    model = Mixed()
    model.head.weight.grad = torch.full((5, 7), torch.inf)
    model.up.weight.grad = torch.ones(31, 5)
    with as_rank(0, 1) as mesh:
        spectra, names = spectra_of(model, mesh)
        planned = spectra.planned(1)
        found = spectra.adopt(planned, whole_of(spectra.numbers(planned)), 1)
    assert [names[s.layer] for s in found] == ["up.weight"]


def test_an_interval_brings_each_layer_once_whatever_the_cadence(monkeypatch):
    monkeypatch.setattr(shard_spectra, "ROOM", 700)
    with as_rank(0, 2) as mesh:
        spectra, names = spectra_of(Mixed(), mesh, interval=10)
        taken = {}
        for count in range(4, 61, 4):
            planned = spectra.planned(count)
            assert 0 < spectra.numbers_of(planned) <= spectra.room == 700
            for candidate in planned:
                taken.setdefault(names[candidate.layer], []).append(count)
            spectra.agree(count, np.array([WAITS, WAITS]))
    assert len(taken) == 11
    assert {len(steps) for steps in taken.values()} <= {5, 6}


def known_budget(step_seconds):
    budget = Budget(0.01, 1, True)
    for _ in range(40):
        budget.step_done(step_seconds, 0.0, 0.0001 * step_seconds, 0.0, 0.0)
    return budget


def test_a_layer_is_taken_once_all_ranks_can_pay_and_passed_over_where_one_finds_it_too_large():
    with as_rank(0, 2) as mesh:
        spectra, names = spectra_of(Mixed(), mesh, interval=None, budget=known_budget(0.5))
        assert (spectra.planned(1), spectra.ready(1)) == ([], PAYS)
        spectra.agree(1, np.array([PAYS, WAITS]))
        assert spectra.planned(2) == []
        spectra.agree(2, np.array([PAYS, PAYS]))
        assert [names[c.layer] for c in spectra.planned(3)] == ["in_proj_weight[q]"]
        assert spectra.ready(3) == WAITS
        spectra.adopt(spectra.planned(3), whole_of(None), 3)
        spectra.agree(3, np.array([WAITS, WAITS]))
        assert (spectra.planned(4), spectra.ready(4)) == ([], PAYS)
        spectra.agree(4, np.array([PAYS, TOO_LARGE]))
        assert list(spectra.too_large) == ["in_proj_weight[k]"]
        spectra.agree(5, np.array([PAYS, PAYS]))
        assert [names[c.layer] for c in spectra.planned(6)] == ["in_proj_weight[v]"]
        spectra._next = 0
        spectra.agree(6, np.array([WAITS, WAITS]))
        assert spectra.ready(3 + SHORTEST_INTERVAL - 1) == WAITS
        assert spectra.ready(3 + SHORTEST_INTERVAL) == PAYS
        spectra.agree(7, np.array([PAYS, PAYS]))
        assert spectra.planned(8) != []
        spectra.agree(8, np.array([PAYS, OFF]))
        spectra.agree(9, np.array([PAYS, PAYS]))
        assert spectra.planned(10) == []
        spectra, _ = spectra_of(Mixed(), mesh, interval=None, budget=known_budget(0.5))
        spectra._budget.savings = 0.0
        assert spectra.ready(1) == WAITS
        assert spectra_of(Mixed(), mesh, wanted=False)[0].planned(1) == []
        tight, _ = spectra_of(Mixed(), mesh, interval=None, budget=known_budget(1e-4))
        assert tight.ready(1) == TOO_LARGE
