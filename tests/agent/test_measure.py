"""Each number of the first tier against a plain float64 computation of the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from agent.watched_training import (
    assert_close,
    attention,
    column,
    gradients,
    largest,
    loss_of,
    squares,
    total_norm,
    value,
    watched,
    weights,
)
from gradspectra.inventory import take_inventory
from gradspectra.layer_choice import choice_of
from gradspectra.measure import FirstTier
from gradspectra.updates import UpdateTerms, intended_update
from torch import nn

pytestmark = pytest.mark.usefixtures("either_way")

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.2),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.2, fused=True),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=0.03, amsgrad=True, eps=1e-4),
    "adamw-maximize": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.1, maximize=True),
    "adamw-tensor-rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.03), foreach=False),
    "adam-coupled": lambda p: torch.optim.Adam(p, lr=0.03, weight_decay=0.2),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=0.1),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, dampening=0.1, weight_decay=0.1),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd-maximize": lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=0.1, maximize=True),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_gradient_weight_and_update_norms_are_those_of_float64(kind, kept):
    model = attention()
    optimizer = OPTIMIZERS[kind](model.parameters())
    expected = []
    with watched(model, optimizer):
        for step in range(4):
            loss_of(model, 6, step).backward()
            before = weights(model)
            gradient = gradients(model)
            optimizer.step()
            after = weights(model)
            moved = {name: after[name] - before[name] for name in after}
            expected.append((squares(gradient), largest(gradient), squares(after), squares(moved)))
            optimizer.zero_grad()
    assert [record.step for record in kept()] == [1, 2, 3, 4]
    for record, (grad_sq, grad_max, weight_sq, update_sq) in zip(kept(), expected, strict=True):
        assert_close(column(record, "grad_sq"), grad_sq, 1e-5)
        assert_close(column(record, "grad_max"), grad_max, 1e-6)
        assert_close(column(record, "weight_sq"), weight_sq, 1e-5)
        assert_close(column(record, "update_sq"), update_sq, 2e-3, 1e-12)
        root = math.sqrt(sum(update_sq.values()))
        assert record.scalars["update_norm"] == pytest.approx(root, rel=1e-3)
        assert set(column(record, "grad_nonfinite").values()) == {0, None}


DECAYS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=10.0),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=10.0),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=10.0),
    "adamw-tensor-rate": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.1), weight_decay=10.0, foreach=False),
}


@pytest.mark.parametrize("kind", DECAYS)
def test_where_a_decay_takes_all_of_the_weights_the_update_is_taken_by_copies_and_that_is_said(kind, kept, caplog):
    model = attention()
    del model.unused
    optimizer = DECAYS[kind](model.parameters())
    moved, reasons = [], []
    with watched(model, optimizer) as watch:
        for step in range(6):
            optimizer.param_groups[0]["weight_decay"] = 10.0 if step < 4 else 0.1
            loss_of(model, 6, step).backward()
            before, gradient = weights(model), gradients(model)
            optimizer.step()
            moved.append(squares({name: now - before[name] for name, now in weights(model).items()}))
            optimizer.zero_grad()
            reasons.append(watch.status()["not_measured"])
    how = "measured of a few layers at a time, by copies of their weights: "
    reason = f"some updates of {type(optimizer).__name__} are {how}"
    assert reasons == [[reason + "lr 0.1 · weight_decay 10 takes all of the weights a step"]] * 4 + [[], []]
    assert caplog.messages == []
    for record, update_sq in zip(kept(), moved, strict=True):
        assert_close(column(record, "update_sq"), update_sq, 2e-3, 1e-12)
    assert_close(column(kept()[-1], "grad_sq"), squares(gradient), 1e-5, 1e-12)


def test_what_it_takes_to_make_a_tier_grows_with_the_layers_and_not_with_their_square(monkeypatch):
    made = []
    zeros = torch.zeros

    def counted(*shape, **options):
        made.append(shape)
        return zeros(*shape, **options)

    inventory = take_inventory({"": nn.Sequential(*[nn.Linear(2, 2) for _ in range(50)])}, [], choice_of(None))
    monkeypatch.setattr(torch, "zeros", counted)
    FirstTier(inventory)
    assert made == [(5, 100)]


def test_momentum_without_nesterov_tells_its_update_whatever_the_decay(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=10.0)
    with watched(model, optimizer) as watch:
        loss_of(model, 6, 0).backward()
        before = weights(model)
        optimizer.step()
        assert watch.status()["not_measured"] == []
    moved = squares({name: now - before[name] for name, now in weights(model).items()})
    assert_close(column(kept()[0], "update_sq"), moved, 2e-3, 1e-12)


@pytest.mark.usefixtures("kept")
def test_adamw_of_a_torch_that_does_not_say_it_by_group_decays_apart_from_the_gradient():
    model = nn.Linear(5, 4, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.5)
    model(torch.ones(2, 5)).square().sum().backward()
    before = model.weight.detach().double().clone()
    optimizer.step()
    moved = float((model.weight.detach().double() - before).square().sum())
    del optimizer.param_groups[0]["decoupled_weight_decay"]
    (tensor,) = take_inventory({"": model}, [optimizer], choice_of(None)).tensors
    direction, factor = intended_update(optimizer, (tensor,))
    with torch.no_grad():
        d = direction(0, 20, torch.empty(20))
    assert float(d.double().square().sum()) * factor**2 == pytest.approx(moved, rel=1e-4)
    terms = UpdateTerms(optimizer)
    assert terms.of(tensor) is not None
    assert terms.coefficients[0].decay == 0.5


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_before_any_is_taken_have_an_update_of_zero(fused, kept, caplog):
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    with watched(model, optimizer) as watch:
        for step in range(6):
            scaler.scale(loss_of(model, 6, step)).backward()
            if step < 4:
                model.head.weight.grad[0, 0] = math.inf
            before = weights(model)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert watch.status()["not_measured"] == []
    moved = squares({name: now - before[name] for name, now in weights(model).items()})
    assert caplog.messages == []
    assert [record.counts["skipped"] for record in kept()] == [1] * 4 + [0] * 2
    with_gradient = [name for name in moved if not name.startswith("unused")]
    for record in kept()[:4]:
        assert {value(record, "update_sq", name) for name in with_gradient} == {0.0}
        assert "moment_sq" not in record.statistics or set(column(record, "moment_sq").values()) == {None}
    assert_close(column(kept()[-1], "update_sq"), moved, 2e-3, 1e-12)


def test_a_layer_without_gradient_has_weights_and_no_update(kept):
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    with watched(model, optimizer):
        loss_of(model, 6, 0).backward()
        optimizer.step()
    (record,) = kept()
    assert value(record, "grad_sq", "unused.weight") is None
    assert value(record, "grad_max", "unused.weight") is None
    assert value(record, "grad_nonfinite", "unused.weight") is None
    assert value(record, "update_sq", "unused.weight") == 0.0
    assert value(record, "weight_sq", "unused.weight") == pytest.approx(
        float(model.unused.weight.detach().square().sum())
    )


def test_numbers_that_are_not_finite_are_counted_and_the_rest_is_measured(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer):
        loss_of(model, 6, 0).backward()
        model.qkv.weight.grad[0, :3] = math.nan
        model.qkv.weight.grad[1, 0] = -math.inf
        model.norm.weight.grad[:] = math.nan
        whole = gradients(model)["qkv.weight[q]"]
        optimizer.step()
    (record,) = kept()
    finite = whole[np.isfinite(whole)]
    assert value(record, "grad_nonfinite", "qkv.weight[q]") == 4
    assert value(record, "grad_sq", "qkv.weight[q]") == pytest.approx(np.square(finite).sum(), rel=1e-5)
    assert value(record, "grad_max", "qkv.weight[q]") == pytest.approx(np.abs(finite).max(), rel=1e-6)
    assert value(record, "grad_nonfinite", "qkv.weight[k]") == 0
    assert value(record, "grad_nonfinite", "norm.weight") == 12
    assert value(record, "grad_sq", "norm.weight") is None
    assert math.isnan(record.scalars["grad_norm"])


def test_a_sum_out_of_range_is_infinite_without_a_number_that_is_not_finite(kept):
    model = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with watched(model, optimizer):
        model.weight.grad = torch.full_like(model.weight, 1e20)
        optimizer.step()
    (record,) = kept()
    assert value(record, "grad_sq", "weight") == math.inf
    assert value(record, "grad_max", "weight") == pytest.approx(1e20)
    assert value(record, "grad_nonfinite", "weight") == 0


def test_large_tensors_are_measured_in_pieces(kept):
    model = nn.Linear(700, 300, bias=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with watched(model, optimizer):
        model.weight.grad = torch.randn_like(model.weight)
        before = model.weight.detach().double().clone()
        optimizer.step()
        moved = model.weight.detach().double() - before
    (record,) = kept()
    assert value(record, "grad_sq", "weight") == pytest.approx(
        float(model.weight.grad.double().square().sum()), rel=1e-5
    )
    assert value(record, "update_sq", "weight") == pytest.approx(float(moved.square().sum()), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_sums_of_other_dtypes_are_made_in_float32_or_wider(dtype, kept):
    torch.manual_seed(0)
    model = nn.Linear(300, 300, bias=False, dtype=dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with watched(model, optimizer):
        model.weight.grad = torch.randn_like(model.weight)
        optimizer.step()
    (record,) = kept()
    state = optimizer.state[model.weight]
    u = state["exp_avg"].double() / 0.1 / ((state["exp_avg_sq"].double() / 0.001).sqrt() + 1e-8)
    intended = 0.01 * (u + 0.01 * model.weight.detach().double()) / (1 - 0.01 * 0.01)
    assert value(record, "grad_sq", "weight") == pytest.approx(
        float(model.weight.grad.double().square().sum()), rel=1e-5
    )
    weight_sq = float(model.weight.detach().double().square().sum())
    assert value(record, "weight_sq", "weight") == pytest.approx(weight_sq, rel=1e-5)
    assert value(record, "update_sq", "weight") == pytest.approx(float(intended.square().sum()), rel=1e-2)


def test_memory_that_is_not_contiguous_and_transposed_projections_are_measured(kept):
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 12))

    model = nn.ModuleDict({"c_attn": Conv1D(), "conv": nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with watched(model, optimizer):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape).contiguous(
                memory_format=torch.channels_last if parameter.dim() == 4 else torch.contiguous_format
            )
        before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
        optimizer.step()
    (record,) = kept()
    projection = model["c_attn"].weight
    moved = projection.detach().double() - before["c_attn.weight"]
    for index, suffix in enumerate("qkv"):
        part = slice(4 * index, 4 * index + 4)
        name = f"c_attn.weight[{suffix}]"
        assert value(record, "grad_sq", name) == pytest.approx(float(projection.grad[:, part].square().sum()), rel=1e-5)
        assert value(record, "update_sq", name) == pytest.approx(float(moved[:, part].square().sum()), rel=1e-3)
    kernel = model["conv"].weight
    moved = kernel.detach().double() - before["conv.weight"]
    assert value(record, "update_sq", "conv.weight") == pytest.approx(float(moved.square().sum()), rel=1e-3)


def test_sparse_gradients_are_measured_without_making_them_dense(kept):
    model = nn.Embedding(50, 4, sparse=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        model(torch.tensor([3, 3, 7])).square().sum().backward()
        expected = model.weight.grad.to_dense().double().square().sum()
        optimizer.step()
    (record,) = kept()
    assert value(record, "grad_sq", "weight") == pytest.approx(float(expected), rel=1e-5)
    assert value(record, "update_sq", "weight") is None


def test_the_norm_of_the_whole_gradient_comes_from_the_layers_where_nothing_clips(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, every=2):
        norms = []
        for step in range(4):
            loss_of(model, 4, step).backward()
            norms.append(total_norm(gradients(model)))
            optimizer.step()
            optimizer.zero_grad()
    assert [record.step for record in kept() if record.values is not None] == [2, 4]
    assert [record.scalars.get("grad_norm") for record in kept()] == [
        None,
        pytest.approx(norms[1], rel=1e-6),
        None,
        pytest.approx(norms[3], rel=1e-6),
    ]
