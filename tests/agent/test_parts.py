"""Backward passes are counted, and what each brought is measured, whatever its weight and scale."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from agent.watched_training import (
    Attention,
    assert_close,
    attention,
    column,
    gradients,
    loss_of,
    squares,
    value,
    watched,
)
from gradspectra.backward import Backward
from gradspectra.guard import Guard
from gradspectra.inventory import take_inventory
from gradspectra.layer_choice import choice_of
from gradspectra.parts import PartSquares
from gradspectra_core.noise import noise_terms_from_sums
from torch import nn
from torch.utils.checkpoint import checkpoint


def contribution(model, examples, seed, weight):
    """Squared norms of one part's gradient, by a backward pass of its own on a copy of the model."""
    twin = Attention()
    twin.load_state_dict(model.state_dict())
    (loss_of(twin, examples, seed) * weight).backward()
    return squares(gradients(twin))


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("sizes", [(4, 4), (6, 3, 1)])
def test_part_squares_are_those_of_each_pass_alone(sizes, kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = 1 / len(sizes)
    expected = {}
    with watched(model, optimizer) as watch:
        for step in range(2):
            for part, size in enumerate(sizes):
                alone = contribution(model, size, 10 * step + part, weight)
                if step == 1:
                    expected = {n: None if s is None else expected.get(n, 0) + s / weight for n, s in alone.items()}
                loss = loss_of(model, size, 10 * step + part)
                (loss * weight).backward()
                watch.log(loss=loss, examples=size)
            optimizer.step()
            optimizer.zero_grad()
    first, second = kept()
    assert [first.counts["parts"], second.counts["parts"]] == [len(sizes)] * 2
    assert set(column(first, "part_sq").values()) == {None}
    assert_close(column(second, "part_sq"), expected, 1e-5)
    assert second.counts["examples"] == sum(sizes)
    assert second.scalars["noise_w"] == pytest.approx(sum(weight * (1 - weight) / size for size in sizes))
    assert second.scalars["noise_w2"] == pytest.approx(sum(weight**2 / size for size in sizes))


def test_parts_are_measured_before_clipping_and_without_the_loss_scale(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watched(model, optimizer, batch_size=5):
        for step in range(2):
            alone = [contribution(model, 5, part, 0.5) for part in range(2)]
            for part in range(2):
                scaler.scale(loss_of(model, 5, part) / 2).backward()
            scaler.unscale_(optimizer)
            whole = gradients(model)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            del step
    record = kept()[1]
    expected = {n: None if s is None else 2 * (s + alone[1][n]) for n, s in alone[0].items()}
    assert_close(column(record, "part_sq"), expected, 1e-4)
    assert_close(column(record, "grad_sq"), squares(whole), 1e-4)
    assert record.scalars["loss_scale"] == 1024.0
    assert record.counts["examples"] == 10


@pytest.mark.parametrize("factor", [1.0, 1 / 64, 2.0])
@pytest.mark.parametrize("clip", [None, "torch", "own"])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_parts_of_a_gradient_that_was_scaled_after_its_passes_are_left_out(factor, clip, scale, kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    with watched(model, optimizer) as watch:
        for step in range(3):
            for part in range(2):
                scaler.scale(loss_of(model, 5, 10 * step + part)).backward()
            scaler.unscale_(optimizer)
            own = [p.grad for p in model.parameters() if p.grad is not None]
            torch._foreach_mul_(own, factor)
            if clip == "torch":
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            elif clip == "own":
                norm = torch.nn.utils.get_total_norm(own)
                torch._foreach_mul_(own, 0.01 / norm)
                watch.log(grad_norm=norm)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    for record in kept()[1:]:
        there = factor == 1.0
        assert (value(record, "part_sq", "head.weight") is not None) == ("noise_w" in record.scalars) == there
        assert value(record, "grad_sq", "head.weight") is not None


def test_noise_of_a_linear_regression_comes_out_right(kept):
    """Trace of the noise covariance 26 at distance 1 from the optimum; 20 inputs, residual variance 0.25."""
    torch.manual_seed(0)
    truth = torch.zeros(20)
    truth[0] = 1.0
    model = nn.Linear(20, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sizes = (16, 16, 16, 1)
    with watched(model, optimizer, layers="weight") as watch:
        for _ in range(1501):
            for size in sizes:
                x = torch.randn(size, 20)
                y = x @ truth + 0.5 * torch.randn(size)
                loss = (model(x)[:, 0] - y).square().mean() / 2
                (loss / 4).backward()
                watch.log(loss=loss, examples=size)
            optimizer.step()
            optimizer.zero_grad()
    terms = [
        noise_terms_from_sums(
            value(r, "part_sq", "weight"), value(r, "grad_sq", "weight"), r.scalars["noise_w"], r.scalars["noise_w2"]
        )
        for r in kept()[1:]
    ]
    tr_sigma, signal_sq = np.mean(terms, axis=0)
    assert tr_sigma == pytest.approx(26.0, rel=0.1)
    assert tr_sigma / signal_sq == pytest.approx(26.0, rel=0.15)


@pytest.mark.parametrize("told", ["tokens", "share", "device"])
def test_parts_of_unequal_weight_are_those_of_the_twin(told, kept):
    """The loss is a mean over all tokens of the step: a part weighs as much as its share of them."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sizes, tokens = (5, 3, 2), (70, 20, 10)
    weights = [count / 100 for count in tokens]
    with watched(model, optimizer) as watch:
        for _ in range(2):
            own = []
            for size, weight in zip(sizes, weights, strict=True):
                x = torch.randn(size, 6)
                loss = model(x).square().mean()
                own.append(torch.autograd.grad(loss, model.weight, retain_graph=True)[0].flatten().double().numpy())
                (loss * weight).backward()
                number = {"tokens": weight * 100, "share": weight, "device": torch.tensor(weight)}[told]
                watch.log(loss=loss, examples=size, part_weight=number)
            optimizer.step()
            optimizer.zero_grad()
    record = kept()[1]
    assert value(record, "part_sq", "weight") == pytest.approx(reference.part_sq(own, weights), rel=1e-5)
    terms = noise_terms_from_sums(
        value(record, "part_sq", "weight"),
        value(record, "grad_sq", "weight"),
        record.scalars["noise_w"],
        record.scalars["noise_w2"],
    )
    assert terms == pytest.approx(reference.noise_terms(own, weights, sizes), rel=1e-4)
    assert "part_weight" not in record.scalars


@pytest.mark.parametrize("told", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_weights_that_cannot_be_right_leave_the_noise_out(told, kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        for _ in range(2):
            for part in range(2):
                loss_of(model, 4, part).backward()
                watch.log(**({"part_weight": told[part]} if part < len(told) else {"loss": 1.0}))
            optimizer.step()
            optimizer.zero_grad()
    record = kept()[1]
    assert record.counts["parts"] == 2
    assert "noise_w" not in record.scalars
    assert set(column(record, "part_sq").values()) == {None}
    assert value(record, "grad_sq", "head.weight") > 0


def test_gradients_taken_by_autograd_grad_are_no_part(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        for step in range(2):
            loss = loss_of(model, 4, step)
            (slope,) = torch.autograd.grad(loss, model.head.weight, create_graph=True)
            (loss + slope.square().sum()).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [record.counts["parts"] for record in kept()] == [1, 1]


def test_tied_weights_are_one_layer_and_one_contribution(kept):
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
    model["head"].weight = model["embed"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def backward(seed):
        x = torch.randint(0, 9, (5,), generator=torch.Generator().manual_seed(seed))
        (nn.functional.cross_entropy(model["head"](model["embed"](x)), x) / 2).backward()

    with watched(model, optimizer):
        for _ in range(2):
            norms, last = [], torch.zeros(9, 4)
            for part in range(2):
                backward(part)
                norms.append(float((model["embed"].weight.grad - last).square().sum()))
                last = model["embed"].weight.grad.clone()
            optimizer.step()
            optimizer.zero_grad()
    record = kept()[1]
    assert record.table.names == ("embed.weight",)
    assert value(record, "part_sq", "embed.weight") == pytest.approx(2 * sum(norms), rel=1e-5)


def test_a_layer_in_some_of_the_parts_only_is_measured_in_those(kept):
    model = nn.ModuleDict({"always": nn.Linear(3, 1, bias=False), "once": nn.Linear(3, 1, bias=False)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(1, 3)
    with watched(model, optimizer):
        for _ in range(2):
            model["always"](x).sum().backward()
            (model["always"](x) + 2 * model["once"](x)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    record = kept()[1]
    assert record.counts["parts"] == 2
    assert value(record, "part_sq", "always.weight") == pytest.approx(2 * (3 + 3))
    assert value(record, "part_sq", "once.weight") == pytest.approx(2 * 12)


def test_reentrant_checkpointing_gives_no_part_squares_rather_than_wrong_ones(kept):
    torch.manual_seed(0)
    inner = nn.Linear(4, 4)
    model = nn.ModuleDict({"inner": inner, "outer": nn.Linear(4, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, parts=2):
        for _ in range(3):
            for _ in range(2):
                x = torch.ones(2, 4, requires_grad=True)
                hidden = checkpoint(inner, checkpoint(inner, x, use_reentrant=True), use_reentrant=True)
                model["outer"](hidden).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert set(column(kept()[-1], "part_sq").values()) == {None}


def test_hooks_are_set_once_and_stay_until_a_step_is_not_measured(monkeypatch):
    model = nn.Linear(3, 1, bias=False)
    squares = PartSquares(take_inventory({"": model}, [], choice_of(None)).tensors, 1, Backward(Guard()), Guard())
    seen = []
    monkeypatch.setattr(squares, "_arrives", lambda index, _: seen.append(index))

    def passes():
        seen.clear()
        model(torch.ones(1, 3)).sum().backward()
        return len(seen)

    squares.arm()
    handles = list(squares._handles)
    assert passes() == 1
    squares.disarm()
    assert passes() == 0
    squares.arm()
    assert squares._handles == handles
    assert passes() == 1
    squares.rest()
    assert (squares.armed, squares._handles, passes()) == (False, [], 0)


@pytest.mark.usefixtures("kept")
def test_steps_whose_parts_are_not_due_have_no_hooks():
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    hooked = []
    with watched(model, optimizer, every=2) as watch:
        for _ in range(6):
            hooked.append(bool(watch._session.measuring._parts._handles))
            for _ in range(2):
                model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert hooked == [False, True, False, True, False, True]
    assert not watch._session.measuring._parts._handles


def test_the_number_of_parts_can_be_given(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, parts=1):
        for step in range(2):
            for _ in range(2):
                loss_of(model, 4, step).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [record.counts["parts"] for record in kept()] == [1, 1]
    assert "noise_w" not in kept()[1].scalars
    assert set(column(kept()[1], "part_sq").values()) == {None}
