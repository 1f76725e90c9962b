"""Updates that an optimizer's state does not tell: by copies of a few layers' weights, against plain float64."""

from __future__ import annotations

import copy

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
from gradspectra.inventory import take_inventory
from gradspectra.layer_choice import choice_of
from gradspectra.staging import Staging
from torch import nn

pytestmark = pytest.mark.usefixtures("either_way")


class Lion(torch.optim.Optimizer):
    """Sign of an average of gradients, with a decay of the weights: not of torch, not known."""

    def __init__(self, parameters, lr, decay=0.1):
        super().__init__(parameters, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                direction = (0.9 * m + 0.1 * p.grad).sign()
                p.mul_(1 - group["lr"] * group["decay"]).sub_(direction, alpha=group["lr"])
                m.mul_(0.99).add_(p.grad, alpha=0.01)


UNKNOWN = {
    "lion": lambda p: Lion(p, 0.03),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.03),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.03),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.03),
    "decayed-away": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=10.0),
}


def products(gradient, moved):
    return {name: 0.0 if g is None else float((g * moved[name]).sum()) for name, g in gradient.items()}


def stepped(model, optimizer):
    """Take a step; gives the gradient that the optimizer got and what the weights moved by."""
    before, gradient = weights(model), gradients(model)
    optimizer.step()
    return gradient, {name: after - before[name] for name, after in weights(model).items()}


def turns(records, statistic="update_sq"):
    """Of each record the layers of which it has a statistic."""
    return [[name for name, number in column(record, statistic).items() if number is not None] for record in records]


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_update_that_the_state_does_not_tell_is_that_of_float64(kind, clip, kept):
    model = attention()
    optimizer = UNKNOWN[kind](model.parameters())
    expected = []
    with watched(model, optimizer) as watch:
        for step in range(3):
            loss_of(model, 6, step).backward()
            gradient = gradients(model)
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            expected.append((gradient, stepped(model, optimizer)[1]))
            optimizer.zero_grad()
        said = watch.status()["not_measured"]
    name = type(optimizer).__name__
    assert any(f"{name}" in why and "a few layers at a time, by copies of their weights: " in why for why in said)
    for record, (gradient, moved) in zip(kept(), expected, strict=True):
        assert_close(column(record, "update_sq"), squares(moved), 1e-5)
        assert_close(column(record, "update_dot_grad"), products(gradient, moved), 1e-4, 1e-7)
        assert record.scalars["update_norm"] == pytest.approx(sum(squares(moved).values()) ** 0.5, rel=1e-5)


def test_an_update_by_matrices_and_a_float64_one_are_those_of_float64(kept):
    model = nn.ModuleDict({"narrow": nn.Linear(20, 30, bias=False), "wide": nn.Linear(9, 7, bias=False).double()})
    optimizers = [
        torch.optim.Muon(model["narrow"].parameters(), lr=0.05),
        Lion(model["wide"].parameters(), 1e-9, 0.0),
    ]
    expected = []
    with watched(model, optimizers):
        for _ in range(2):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            expected.append([stepped(model[part], own) for part, own in zip(model, optimizers, strict=True)])
    for record, of_both in zip(kept(), expected, strict=True):
        for part, (gradient, moved) in zip(("narrow", "wide"), of_both, strict=True):
            g, d = gradient["weight"], moved["weight"]
            assert value(record, "update_sq", f"{part}.weight") == pytest.approx(np.square(d).sum(), rel=1e-5)
            assert value(record, "update_dot_grad", f"{part}.weight") == pytest.approx((g * d).sum(), rel=1e-4)


def test_without_a_gradient_or_where_the_step_is_skipped_it_is_0(kept):
    model = attention()
    optimizer, scaler = Lion(model.parameters(), 0.03), torch.amp.GradScaler("cpu", init_scale=1024.0)
    with watched(model, optimizer):
        for step in range(2):
            scaler.scale(loss_of(model, 6, step)).backward()
            if step:
                model.head.bias.grad[0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    taken, skipped = kept()
    for name in ("update_sq", "update_dot_grad"):
        assert value(taken, name, "unused.weight") == 0.0
        assert abs(value(taken, name, "qkv.weight[k]")) > 1e-9
        assert set(column(skipped, name).values()) == {0.0}


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_where_the_gradient_was_clipped_by_value_the_update_alone_is_known_and_of_a_sparse_one_nothing(kept):
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4, sparse=True), "head": nn.Linear(4, 3)})
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        model["head"](model["embed"](torch.tensor([3, 7]))).square().sum().backward()
        nn.utils.clip_grad_value_(model["head"].weight, 1e-3)
        _, moved = stepped(model["head"], optimizer)
    (record,) = kept()
    assert value(record, "update_sq", "head.weight") == pytest.approx(np.square(moved["weight"]).sum(), rel=1e-5)
    assert value(record, "update_dot_grad", "head.weight") is None
    assert value(record, "update_sq", "embed.weight") is None
    assert value(record, "update_dot_grad", "embed.weight") is None


def test_of_bfloat16_weights_it_is_what_has_arrived(kept):
    torch.manual_seed(0)
    model = nn.Linear(30, 40, bias=False).bfloat16()
    optimizer = Lion(model.parameters(), 3e-4, decay=0.0)
    with watched(model, optimizer):
        model.weight.grad = torch.randn_like(model.weight)
        gradient, moved = stepped(model, optimizer)
    (record,) = kept()
    real = np.square(moved["weight"]).sum()
    assert real != pytest.approx(1200 * 3e-4**2, rel=0.05), "rounding changes the update"
    assert value(record, "update_sq", "weight") == pytest.approx(real, rel=1e-5)
    assert value(record, "update_dot_grad", "weight") == pytest.approx(
        (gradient["weight"] * moved["weight"]).sum(), 1e-4
    )
    assert "rounding_lost" not in record.statistics


def test_of_a_closure_it_is_what_the_whole_step_moved(kept):
    model = attention()
    del model.unused
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    expected = []

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 4, 0)
        loss.backward()
        return loss

    with watched(model, optimizer):
        for _ in range(2):
            before = weights(model)
            optimizer.step(closure)
            moved = {name: after - before[name] for name, after in weights(model).items()}
            expected.append((squares(moved), products(gradients(model), moved)))
    for record, (square, product) in zip(kept(), expected, strict=True):
        assert_close(column(record, "update_sq"), square, 1e-5)
        assert_close(column(record, "update_dot_grad"), product, 1e-4, 1e-7)


def test_layers_come_in_turn_and_one_larger_than_the_room_too(kept, monkeypatch):
    monkeypatch.setattr("gradspectra.staging.STAGED", 30)
    sizes = (5, 5, 5, 40, 2, 2)
    model = nn.ModuleList(nn.Linear(5, n, bias=False) for n in sizes)
    optimizer = Lion(model.parameters(), 0.1)
    with watched(model, optimizer) as watch:
        for _ in range(6):
            for p in model.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
        assert watch._session.measuring.second.tier._staged == {}
    found = [[int(name[0]) for name in turn] for turn in turns(kept())]
    assert found == [[0], [1], [2], [3], [4, 5], [0]]
    assert [turn == again for turn, again in zip(turns(kept()), turns(kept(), "update_dot_grad"), strict=True)] == [
        True
    ] * 6


def test_many_optimizers_share_the_room_of_a_step(kept, monkeypatch):
    monkeypatch.setattr("gradspectra.staging.STAGED", 60)
    model = nn.ModuleList(nn.Linear(5, 5, bias=False) for _ in range(5))
    optimizers = [Lion(layer.parameters(), 0.1) for layer in model]
    with watched(model, optimizers):
        for _ in range(3):
            for p, own in zip(model.parameters(), optimizers, strict=True):
                p.grad = torch.ones_like(p)
                own.step()
    assert [[int(name[0]) for name in turn] for turn in turns(kept())] == [[0, 1], [2, 3], [0, 4]]


def test_at_most_a_sixty_fourth_of_the_weights_is_kept_at_a_time(kept):
    model = nn.ModuleList(nn.Linear(100, 60, bias=False) for _ in range(100))
    optimizer = Lion(model.parameters(), 0.1)
    with watched(model, optimizer):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert turns(kept()) == [["0.weight"]]


def test_layers_that_have_their_turn_together_each_lap_are_kept_in_different_laps(monkeypatch):
    monkeypatch.setattr("gradspectra.staging.STAGED", 30)
    model = nn.ModuleList(nn.Linear(5, 5, bias=False) for _ in range(6))
    optimizer = Lion(model.parameters(), 0.1)
    tensors = take_inventory({"": model}, [optimizer], choice_of(None)).tensors
    staging, kept_here = Staging(tensors, [optimizer]), []
    for _ in range(3):
        for together in (tensors[:3], tensors[3:]):
            staging.choose(together)
            kept_here += [tensor.first for tensor in together if id(tensor.parameter) in staging.chosen]
    assert kept_here == [0, 3, 1, 4, 2, 5]


@pytest.mark.usefixtures("kept")
def test_of_an_optimizer_whose_state_tells_its_updates_nothing_is_kept():
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    with watched(model, optimizer) as watch:
        tier, seen = watch._session.measuring.second.tier, []
        optimizer.register_step_pre_hook(lambda *_: seen.append(dict(tier._staged)))
        loss_of(model, 4, 0).backward()
        optimizer.step()
    assert seen == [{}]


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("kind", ["lion", "adafactor", "decayed-away"])
def test_training_stays_the_same_to_the_last_bit(kind):
    plain = attention()
    seen = copy.deepcopy(plain)
    found = []
    for model, watch_it in ((plain, False), (seen, True)):
        optimizer = UNKNOWN[kind](model.parameters())
        watch = watched(model, optimizer) if watch_it else None
        for step in range(5):
            loss_of(model, 6, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        if watch is not None:
            watch.close()
        found.append(blocks(model, lambda p: p))
    for name, array in found[0].items():
        assert np.array_equal(array, found[1][name]), name
