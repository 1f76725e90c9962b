"""The second tier: each number against plain float64, which layers have their turn, and what is left out."""

from __future__ import annotations

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
    loss_of,
    squares,
    value,
    watched,
    weights,
)
from gradspectra.budget import Budget
from gradspectra.inventory import take_inventory
from gradspectra.layer_choice import choice_of
from gradspectra.second_rows import CLIPPED
from gradspectra.second_tier import SecondTier
from torch import nn

pytestmark = pytest.mark.usefixtures("either_way")

GRADIENT = ("grad_l1", "grad_zero_rows", "grad_dot_weight")


def of_each(arrays, number):
    return {name: None if array is None else number(array) for name, array in arrays.items()}


def l1(array):
    return math.fsum(abs(entry) for entry in array.ravel())


def zero_rows(array):
    return sum(1 for row in array if not np.any(row))


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))


def dots(first, second):
    return {name: None if first[name] is None else dot(first[name], second[name]) for name in first}


def check_gradient(record, gradient, after, rel=1e-5):
    assert_close(column(record, "grad_l1"), of_each(gradient, l1), rel)
    assert column(record, "grad_zero_rows") == of_each(gradient, zero_rows)
    assert_close(column(record, "grad_dot_weight"), dots(gradient, after), 1e-4, 1e-6)


UPDATED = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.2),
    "adam-coupled": lambda p: torch.optim.Adam(p, lr=0.03, weight_decay=0.2, amsgrad=True),
    "adamw-tensor-rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.03), betas=(0.8, 0.95), foreach=False),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.1),
}


def moments(model, optimizer, of):
    """A number of Adam's corrected moments m̂, v̂ of each layer, in float64."""

    def corrected(name, beta):
        return lambda p: (
            optimizer.state[p][name] / (1 - beta ** optimizer.state[p]["step"]) if p in optimizer.state else None
        )

    beta1, beta2 = optimizer.param_groups[0]["betas"]
    first, second = blocks(model, corrected("exp_avg", beta1)), blocks(model, corrected("exp_avg_sq", beta2))
    return {name: None if m is None else of(m, second[name]) for name, m in first.items()}


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("kind", UPDATED)
def test_inner_products_with_the_update_and_moments_are_those_of_float64(kind, clip, kept):
    model = attention()
    optimizer = UPDATED[kind](model.parameters())
    expected = []
    with watched(model, optimizer):
        for step in range(3):
            loss_of(model, 6, step).backward()
            before, gradient = weights(model), gradients(model)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            moved = {name: after - before[name] for name, after in weights(model).items()}
            products = dots(gradient, moved) | {"unused.weight": 0.0, "unused.bias": 0.0}
            adam = None
            if "betas" in optimizer.param_groups[0]:
                numbers = (lambda m, _: np.square(m).sum(), lambda _, v: v.sum(), lower_median_root)
                adam = [moments(model, optimizer, number) for number in numbers]
            expected.append((products, adam))
    for record, (products, adam) in zip(kept(), expected, strict=True):
        assert_close(column(record, "update_dot_grad"), products, 2e-3, 1e-9)
        names = ("moment_sq", "second_moment", "second_moment_median")
        if adam is None:
            assert not set(names) & set(record.statistics)
            continue
        for name, numbers in zip(names, adam, strict=True):
            assert_close(column(record, name), numbers, 1e-4, 1e-30)


def lower_median_root(_, v):
    ordered = np.sort(v.ravel())
    return math.sqrt(ordered[(len(ordered) - 1) // 2])


def test_a_known_step_of_adam_gives_known_numbers(kept):
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5, eps=0.0)
    with watched(model, optimizer):
        model.weight.grad = torch.tensor([[3.0, -4, 1, 2]])
        optimizer.step()
    (record,) = kept()
    names = ("update_dot_grad", "moment_sq", "second_moment", "second_moment_median")
    assert [value(record, name, "weight") for name in names] == pytest.approx([-0.5 * 10, 30, 30, 2], rel=1e-5)


def test_the_median_of_a_large_layer_is_of_a_sample_and_its_sums_of_the_whole(kept):
    model = nn.Linear(700, 300, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with watched(model, optimizer):
        model.weight.grad = torch.randn(300, 700) * torch.linspace(0.5, 2, 700)
        optimizer.step()
        before, gradient = model.weight.detach().double().clone(), model.weight.grad.double()
        model.weight.grad = torch.randn(300, 700)
        optimizer.step()
        moved, gradient = model.weight.detach().double() - before, model.weight.grad.double()
    record, (state,) = kept()[1], optimizer.state.values()
    root = (state["exp_avg_sq"].double() / (1 - 0.999**2)).sqrt()
    assert value(record, "second_moment", "weight") == pytest.approx(float(root.square().sum()), rel=1e-5)
    first = state["exp_avg"].double() / (1 - 0.9**2)
    assert value(record, "moment_sq", "weight") == pytest.approx(float(first.square().sum()), rel=1e-5)
    assert value(record, "second_moment_median", "weight") == pytest.approx(float(root.median()), rel=0.03)
    assert value(record, "update_dot_grad", "weight") == pytest.approx(float((moved * gradient).sum()), rel=1e-3)


@pytest.mark.usefixtures("either_way")
def test_medians_whose_samples_have_no_room_together_come_in_turn_and_sums_at_each_step(kept, monkeypatch):
    monkeypatch.setattr("gradspectra.second_tier.SAMPLED", 3000)
    monkeypatch.setattr("gradspectra.budget.Budget.room", lambda _, entries: entries)
    model = nn.ModuleList(nn.Linear(n, 20, bias=False) for n in (60, 70, 80, 150))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    expected = []
    with watched(model, optimizer):
        for _ in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
            expected.append(moments(model, optimizer, lower_median_root))
    turns = [column(record, "second_moment_median") for record in kept()]
    assert [[int(name[0]) for name, x in row.items() if x is not None] for row in turns] == [[0, 1], [2], [3], [0, 1]]
    for row, all_layers in zip(turns, expected, strict=True):
        assert {n: x for n, x in row.items() if x is not None} == pytest.approx(
            {n: all_layers[n] for n, x in row.items() if x is not None}, rel=1e-4
        )
    assert all(x is not None for record in kept() for x in column(record, "second_moment").values())


def test_tensors_of_one_size_that_took_different_steps_are_measured_one_by_one(kept):
    model = nn.ModuleList(nn.Linear(3, 2) for _ in range(4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.5, 0.5))
    with watched(model, optimizer):
        for used in (model[:3], model):
            loss = sum(layer(torch.ones(5, 3)).square().sum() for layer in used)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    last = optimizer.state[model[3].weight]
    assert [int(optimizer.state[layer.weight]["step"]) for layer in model] == [2, 2, 2, 1]
    expected = float(last["exp_avg_sq"].double().sum()) / 0.5
    assert value(kept()[1], "second_moment", "3.weight") == pytest.approx(expected, rel=1e-5)
    expected = float(optimizer.state[model[0].weight]["exp_avg_sq"].double().sum()) / 0.75
    assert value(kept()[1], "second_moment", "0.weight") == pytest.approx(expected, rel=1e-5)
    assert value(kept()[0], "moment_sq", "3.weight") is None
    assert value(kept()[0], "update_dot_grad", "3.weight") == 0.0


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_loss_scaler_skips_moves_nothing(fused, kept):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with watched(model, optimizer):
        for spoilt in (False, True):
            scaler.scale(model(torch.ones(5, 3)).square().sum()).backward()
            if spoilt:
                model.weight.grad[0, 0] = math.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    first, second = kept()
    assert value(first, "update_dot_grad", "weight") < 0
    assert (value(second, "update_dot_grad", "weight"), second.counts["skipped"]) == (0.0, 1)
    assert value(second, "moment_sq", "weight") == pytest.approx(value(first, "moment_sq", "weight"), rel=1e-6)


def intended(model, optimizer, gradient, before):
    """The update that the optimizer meant to make, in float64 from its state after the step."""
    group = optimizer.param_groups[0]
    if "betas" not in group:
        return {name: -group["lr"] * g for name, g in gradient.items()}

    def of(p):
        state, (beta1, beta2) = optimizer.state[p], group["betas"]
        m = state["exp_avg"].double() / (1 - beta1 ** float(state["step"]))
        return m / ((state["exp_avg_sq"].double() / (1 - beta2 ** float(state["step"]))).sqrt() + group["eps"])

    decay = group["weight_decay"]
    return {n: -group["lr"] * (u + decay * before[n]) for n, u in blocks(model, of).items()}


@pytest.mark.parametrize(
    ("kind", "dtype"), [("adamw", torch.bfloat16), ("adamw", torch.float16), ("sgd", torch.bfloat16)]
)
@pytest.mark.parametrize("rate", [3e-2, 3e-5])
def test_what_rounding_loses_of_the_update_is_that_of_float64(kind, dtype, rate, kept, monkeypatch):
    monkeypatch.setattr("gradspectra.staging.PART", 1)
    torch.manual_seed(0)
    model = nn.ModuleDict({"qkv": nn.Linear(300, 900, bias=False), "head": nn.Linear(40, 50)}).to(dtype)
    make = torch.optim.AdamW if kind == "adamw" else torch.optim.SGD
    optimizer = make(model.parameters(), lr=rate, **({"eps": 1e-4} if kind == "adamw" else {}))
    expected = []
    with watched(model, optimizer):
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            before, gradient = weights(model), gradients(model)
            optimizer.step()
            real = {name: after - before[name] for name, after in weights(model).items()}
            meant = intended(model, optimizer, gradient, before)
            expected.append({n: 1 - np.linalg.norm(real[n]) / np.linalg.norm(meant[n]) for n in real})
    for record, lost in zip(kept(), expected, strict=True):
        assert_close(column(record, "rounding_lost"), lost, 0.02, 0.02)
    if (kind, dtype, rate) == ("adamw", torch.bfloat16, 3e-5):
        assert value(kept()[-1], "rounding_lost", "qkv.weight[k]") > 0.3


def test_weights_in_float32_and_steps_that_move_nothing_lose_nothing_to_rounding(kept):
    model = nn.ModuleDict({"wide": nn.Linear(5, 5), "narrow": nn.Linear(5, 5).bfloat16()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        model["narrow"].bias.grad.zero_()
        optimizer.step()
    (record,) = kept()
    assert value(record, "rounding_lost", "wide.weight") is None
    assert value(record, "rounding_lost", "narrow.bias") is None
    assert abs(value(record, "rounding_lost", "narrow.weight")) < 0.1


def test_weights_are_staged_in_turn_and_let_go_again(kept, monkeypatch):
    monkeypatch.setattr("gradspectra.staging.STAGED", 30)
    model = nn.ModuleList(nn.Linear(5, 5, bias=False) for _ in range(3)).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        for _ in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        assert watch._session.measuring.second.tier._staged == {}
    found = [[name for name, lost in column(r, "rounding_lost").items() if lost is not None] for r in kept()]
    assert found == [["0.weight"], ["1.weight"], ["2.weight"], ["0.weight"]]


@pytest.mark.parametrize("clip", [None, 0.01])
def test_numbers_of_the_gradient_are_those_of_float64(clip, kept):
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    expected = []
    with watched(model, optimizer):
        for step in range(3):
            loss_of(model, 6, step).backward()
            gradient = gradients(model)
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            expected.append((gradient, weights(model)))
    for record, (gradient, after) in zip(kept(), expected, strict=True):
        check_gradient(record, gradient, after)
    assert column(kept()[0], "grad_zero_rows")["embed.weight"] > 0  # tokens that the step did not have


def test_a_known_gradient_gives_known_numbers(kept):
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer), torch.no_grad():
        model[0].weight.copy_(torch.arange(12.0).view(4, 3))
        model[0].weight.grad = torch.tensor([[1.0, -2, 0], [0, 0, 0], [0, -0.0, 0], [0, 0, 3]])
        model[2].bias.grad = torch.tensor([0.0, -1, 0, 5])
        optimizer.step()
    (record,) = kept()
    assert [value(record, name, "0.weight") for name in GRADIENT] == [6.0, 2, -2 + 3 * 11]
    assert value(record, "grad_l1", "2.bias") == 6.0
    assert value(record, "grad_zero_rows", "2.bias") == 2
    assert value(record, "grad_l1", "1.weight") is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_other_types_and_a_block_of_columns_are_summed_in_float32_or_wider(dtype, kept):
    model = nn.ParameterDict({"mix": torch.zeros(200, 90, dtype=dtype), "wide": torch.zeros(300, 400, dtype=dtype)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    split = (("[low]", 1, 0, 30), ("[high]", 1, 30, 90))
    with watched(model, optimizer, layers=lambda name: split if name == "mix" else True), torch.no_grad():
        for parameter in model.values():
            parameter.grad = torch.randn_like(parameter)
            parameter.grad[:, 3] = 0
            parameter.grad[4] = 0
        arrays = {name: torch.view_as_real(p.grad) if p.is_complex() else p.grad for name, p in model.items()}
        arrays = {name: array.double().numpy().copy() for name, array in arrays.items()}
        optimizer.step()
        moved = {name: torch.view_as_real(p) if p.is_complex() else p for name, p in model.items()}
        after = {name: array.detach().double().numpy().copy() for name, array in moved.items()}
    (record,) = kept()
    wide = arrays["wide"]
    assert value(record, "grad_l1", "wide") == pytest.approx(np.abs(wide).sum(), rel=1e-5)
    assert value(record, "grad_zero_rows", "wide") == 1
    assert value(record, "grad_dot_weight", "wide") == pytest.approx((wide * after["wide"]).sum(), rel=1e-4)
    high = arrays["mix"][:, 30:]
    assert value(record, "grad_l1", "mix[high]") == pytest.approx(np.abs(high).sum(), rel=1e-5)
    assert (value(record, "grad_zero_rows", "mix[low]"), value(record, "grad_zero_rows", "mix[high]")) == (1, 0)
    assert value(record, "grad_dot_weight", "mix[high]") == pytest.approx((high * after["mix"][:, 30:]).sum(), rel=1e-4)


def test_numbers_that_are_not_finite_are_left_out_of_the_sums_and_are_no_zeros(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer):
        loss_of(model, 6, 0).backward()
        model.qkv.weight.grad[0] = math.nan
        model.qkv.weight.grad[1, 0] = -math.inf
        model.qkv.weight.grad[2] = 0.0
        model.norm.weight.grad[:] = math.nan
        whole, after = gradients(model)["qkv.weight[q]"], weights(model)["qkv.weight[q]"]
        optimizer.step()
    (record,) = kept()
    finite = np.where(np.isfinite(whole), whole, 0.0)
    assert value(record, "grad_l1", "qkv.weight[q]") == pytest.approx(l1(finite), rel=1e-5)
    assert value(record, "grad_dot_weight", "qkv.weight[q]") == pytest.approx(dot(finite, after), rel=1e-4)
    assert value(record, "grad_zero_rows", "qkv.weight[q]") == 1
    assert [value(record, name, "norm.weight") for name in GRADIENT] == [None] * 3
    assert value(record, "grad_l1", "norm.bias") is not None


def test_a_gradient_that_was_clipped_to_nothing_is_lost(kept):
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        loss_of(model, 4, 0).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.0)
        optimizer.step()
    (record,) = kept()
    assert not set(GRADIENT) & {*record.statistics, *record.count_statistics}
    assert value(record, "moment_sq", "head.weight") == 0.0


def test_a_gradient_that_was_clipped_by_value_or_is_sparse_has_none(kept):
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4, sparse=True), "head": nn.Linear(4, 3)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        model["head"](model["embed"](torch.tensor([3, 7]))).square().sum().backward()
        torch.nn.utils.clip_grad_value_(model["head"].weight, 1e-3)
        optimizer.step()
    (record,) = kept()
    assert value(record, "grad_l1", "head.bias") > 0
    assert value(record, "grad_l1", "head.weight") is None
    assert value(record, "grad_l1", "embed.weight") is None


def test_where_clipping_is_unknown_nothing_is_said_of_the_gradient(kept, monkeypatch):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        monkeypatch.setattr(watch._session, "clips_norm", lambda _: 1 / 0)
        loss_of(model, 6, 0).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
    (record,) = kept()
    assert not set(GRADIENT) & {*record.statistics, *record.count_statistics}
    assert "weight_sq" in record.statistics


def test_the_norm_before_a_clip_that_the_user_told_of_scales_them_too(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer) as watch:
        loss_of(model, 6, 0).backward()
        gradient = gradients(model)
        norm = math.sqrt(sum(np.square(a).sum() for a in gradient.values() if a is not None))
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad *= 0.25
        watch.log(grad_norm=norm)
        optimizer.step()
    check_gradient(kept()[0], gradient, weights(model))
    assert set(CLIPPED) <= set(kept()[0].statistics)


def test_it_can_be_left_out_and_a_wrong_word_is_refused(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, second_tier="off") as watch:
        loss_of(model, 6, 0).backward()
        gradient = gradients(model)
        optimizer.step()
        assert watch.status()["cadence_second"] is None
        said = watch.status()["not_measured"]
    assert said == ['update_sq and the second tier are not measured: second_tier is "off"']
    assert "grad_l1" not in kept()[0].statistics
    assert_close(column(kept()[0], "grad_sq"), squares(gradient), 1e-5)
    assert_close(column(kept()[0], "weight_sq"), squares(weights(model)), 1e-5)
    assert set(column(kept()[0], "update_sq").values()) == {None}
    assert "update_norm" not in kept()[0].scalars
    with pytest.raises(ValueError, match="second_tier must be one of auto, off, got 'all'"):
        watched(model, optimizer, second_tier="all")


def tier_of(model, budget):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return SecondTier(take_inventory({"": model}, [optimizer], choice_of(None)), budget)


def follow(budget, tier, steps, layers):
    """Steps of 0.1 s; gives per recorded step the names of the tensors that had their turn."""
    turns = {}
    for step in range(1, steps + 1):
        second, due = 0.0, budget.due(step)
        if due:
            units = tier.due()
            turns[step] = [tensor.name for unit in units for tensor in unit.tensors]
            second = sum(unit.expected for unit in units)
        paid = budget.pays(0.001)
        spent = (layers if due else 0.0) + second + (0.001 if paid else 0.0)
        budget.step_done(0.1 + spent, 0.0001, layers if due else None, 0.001 if paid else 0.0, 0.0, second)
    return turns


def deep():
    return nn.ModuleList(nn.Linear(80, 80) for _ in range(30))


def test_within_a_budget_a_few_layers_have_their_turn_at_each_recorded_step():
    budget = Budget(0.01, 1, True)
    tier, names = tier_of(deep(), budget), [name for name, _ in deep().named_parameters()]
    budget.lap_seconds = 0.001 * 30
    follow(budget, tier, 200, 0.003)
    turns = follow(budget, tier, 800, 0.003)
    assert budget.cadence == 8
    assert all(len(turn) < len(names) for turn in turns.values())
    for name in names:
        steps = [step for step, turn in turns.items() if name in turn]
        assert len(steps) >= 3
        assert max(np.diff(steps)) <= 208
    assert sum(len(turn) for turn in turns.values()) > 3 * len(names)


def test_where_nothing_is_left_it_still_comes_round_but_never_takes_more_than_a_tenth():
    budget = Budget(0.01, 1, True)
    tier = tier_of(deep(), budget)
    budget.lap_seconds = 0.001 * 17
    tier._speed = 5.0
    tier._plan()
    follow(budget, tier, 300, 0.008)
    assert budget.cadence == 8
    per_step = budget.second_seconds() / budget.cadence
    assert per_step == pytest.approx(budget.second_lap_seconds / 200, rel=1e-6)
    budget.second_lap_seconds = 10.0
    follow(budget, tier, 20, 0.008)
    assert budget.second_seconds() == pytest.approx(0.1 * 0.01 * 8 * budget.step_seconds)


def test_a_tensor_that_would_take_a_twentieth_of_a_step_is_left_out_and_said_so():
    budget = Budget(0.5, 1, True)
    tier = tier_of(nn.ModuleDict({"small": nn.Linear(4, 4), "large": nn.Linear(4000, 2500)}), budget)
    turns = follow(budget, tier, 40, 0.0001)
    assert "large.weight" in tier.too_large
    assert not any("large.weight" in turn for turn in turns.values())
    assert any("small.weight" in turn for turn in turns.values())


def test_without_a_budget_every_recorded_step_has_all_layers_and_says_how_often(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, every=2) as watch:
        for step in range(6):
            loss_of(model, 4, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert watch.status()["cadence_second"] == 2
    assert [record.step for record in kept() if "grad_l1" in record.statistics] == [2, 4, 6]
    assert [record.counts.get("cadence_second") for record in kept()] == [None, None, None, 2, 2, 2]


def test_within_a_budget_the_record_says_which_layers_were_measured(kept):
    model = nn.Sequential(*(nn.Linear(n, n + 1) for n in range(30, 60)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with watched(model, optimizer, budget=0.5):
        for step in range(60):
            model(torch.randn(200, 30, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    found = [column(record, "grad_l1") for record in kept() if "grad_l1" in record.statistics]
    assert found
    some = {name for record in found for name, number in record.items() if number is not None}
    assert some
    for record in kept():
        if "grad_l1" not in record.statistics:
            continue
        for name, number in column(record, "grad_l1").items():
            if number is not None:
                assert number >= math.sqrt(value(record, "grad_sq", name)) * (1 - 1e-5)


@pytest.mark.usefixtures("either_way")
def test_without_a_budget_medians_and_outputs_of_any_size_come_at_each_step(kept, monkeypatch):
    monkeypatch.setattr("gradspectra.second_tier.SAMPLED", 1)
    monkeypatch.setattr("gradspectra.activations.FEWEST_OUTPUTS", 1)
    model = nn.Sequential(*(nn.Linear(n, n, bias=False) for n in (20, 20, 20)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with watched(model, optimizer):
        for _ in range(3):
            model(torch.randn(100, 20)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for name in ("second_moment_median", "act_max"):
        assert [[x is not None for x in column(record, name).values()] for record in kept()] == [[True] * 3] * 3
