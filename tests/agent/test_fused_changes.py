"""Layers that the compiled pass measures, while gradients, weights and the optimizer's state change under it."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from agent.watched_training import (
    assert_close,
    attention,
    blocks,
    column,
    gradients,
    largest,
    loss_of,
    squares,
    value,
    watched,
    weights,
)
from gradspectra.fused import address
from torch import nn

pytestmark = pytest.mark.usefixtures("either_way")


def nothing(*_):
    """What the other changes are compared with."""


def no_gradient(model, _):
    model.norm.weight.grad = None


def another_gradient(model, _):
    for parameter in (model.norm.weight, model.qkv.weight):
        parameter.grad = 3 * parameter.grad


def gradient_in_columns(model, _):
    model.qkv.weight.grad = model.qkv.weight.grad.t().contiguous().t()


def weights_elsewhere(model, _):
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def weights_in_columns(model, _):
    model.qkv.weight.data = model.qkv.weight.data.t().contiguous().t()


def state_loaded(_, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.param_groups[0]["lr"] = 0.004


def state_in_columns(model, optimizer):
    state = optimizer.state[model.qkv.weight]
    for name in ("exp_avg", "exp_avg_sq"):
        state[name] = state[name].t().contiguous().t()


def fewer_steps(model, optimizer):
    optimizer.state[model.head.weight]["step"] -= 1


CHANGES = [
    nothing,
    no_gradient,
    another_gradient,
    gradient_in_columns,
    weights_elsewhere,
    weights_in_columns,
    state_loaded,
    state_in_columns,
    fewer_steps,
]


def moments(model, optimizer):
    """Σ m̂², Σ v̂ and median √v̂ of each layer with a gradient, in float64."""
    beta1, beta2 = optimizer.param_groups[0]["betas"]

    def of(name, beta):
        def corrected(p):
            state = optimizer.state.get(p)
            return None if not state else state[name] / (1 - beta ** state["step"].double())

        return blocks(model, corrected)

    first, second = of("exp_avg", beta1), of("exp_avg_sq", beta2)
    return {
        "moment_sq": squares(first),
        "second_moment": {name: None if v is None else float(v.sum()) for name, v in second.items()},
        "second_moment_median": {name: None if v is None else lower_median_root(v) for name, v in second.items()},
    }


def lower_median_root(v):
    ordered = np.sort(v.ravel())
    return math.sqrt(ordered[(len(ordered) - 1) // 2])


@pytest.mark.parametrize("change", CHANGES)
def test_numbers_stay_those_of_float64_when_something_changes_between_two_steps(change, kept):
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.2)
    start, expected = weights(model), []
    with watched(model, optimizer):
        for step in range(4):
            loss_of(model, 6, step).backward()
            if step == 2:
                change(model, optimizer)
            before, gradient = weights(model), gradients(model)
            optimizer.step()
            after = weights(model)
            moved = {name: after[name] - before[name] for name in after}
            if step == 2 and change is no_gradient:
                moved["norm.weight"] = np.zeros(12)
            expected.append(
                {
                    "grad_sq": squares(gradient),
                    "grad_max": largest(gradient),
                    "weight_sq": squares(after),
                    "update_sq": squares(moved),
                    "drift_sq": squares({name: array - start[name] for name, array in after.items()}),
                }
                | moments(model, optimizer)
            )
            optimizer.zero_grad()
    for record, numbers in zip(kept(), expected, strict=True):
        for name, found in numbers.items():
            assert_close(column(record, name), found, 2e-3 if name == "update_sq" else 1e-4, 1e-12)


def test_sparse_gradients_come_and_go(kept):
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with watched(model, optimizer):
        for sparse in (False, True, False):
            model["embed"].sparse = sparse
            model["head"](model["embed"](torch.tensor([3, 7]))).square().sum().backward()
            assert model["embed"].weight.grad.is_sparse == sparse
            gradient = model["embed"].weight.grad.to_dense().double()
            optimizer.step()
            optimizer.zero_grad()
            expected.append(float(gradient.square().sum()))
    assert [value(record, "grad_sq", "embed.weight") for record in kept()] == pytest.approx(expected, rel=1e-5)
    assert [value(record, "grad_l1", "embed.weight") is None for record in kept()] == [False, True, False]
    assert all(value(record, "grad_l1", "head.weight") > 0 for record in kept())


def test_parameters_that_are_added_are_measured_from_then_on(kept):
    model = nn.ModuleDict({"first": nn.Linear(4, 4)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        for step in range(4):
            if step == 1:
                model["second"] = nn.Linear(4, 2)
                optimizer.add_param_group({"params": list(model["second"].parameters()), "lr": 0.01})
            outputs = [layer(torch.ones(3, 4)).square().sum() for layer in model.values()]
            torch.stack(outputs).sum().backward()
            before = weights(model)
            optimizer.step()
            optimizer.zero_grad()
        moved = {name: array - before[name] for name, array in weights(model).items()}
    assert_close(column(kept()[-1], "update_sq"), squares(moved), 2e-3)
    assert_close(column(kept()[-1], "moment_sq"), moments(model, optimizer)["moment_sq"], 1e-4)
    assert list(column(kept()[0], "update_sq")) == ["first.weight", "first.bias"]


def test_what_lies_in_memory_as_less_than_it_seems_is_never_read():
    whole = torch.zeros(20, 30)
    assert address(whole, 600) == whole.data_ptr()
    for other in (
        whole[:1].expand(20, 30),
        whole.t(),
        whole[:, :29],
        whole[:19],
        whole.double(),
        whole.to_sparse(),
        whole.to("meta"),
        whole.as_strided((600,), (0,)),
        torch.empty(0),
        None,
    ):
        assert address(other, 600) == 0
