"""Backward passes whose gradients no step takes are no parts of it, and many of them in a row are said."""

from __future__ import annotations

import math

import pytest
import torch
from agent.watched_training import column, value, watched
from gradspectra import scalars
from torch import nn
from torch.utils.checkpoint import checkpoint

HEADS = ("first", "second")


def model_of_one_layer(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(4, 1, bias=False)


def loss_at(model, seed, weight=1.0):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
    return weight * model(x).square().mean()


def test_a_batch_that_is_dropped_is_no_part_of_the_next_step(kept):
    model = model_of_one_layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        for batch in range(7):
            loss_at(model, batch).backward()
            if batch not in (2, 3):
                optimizer.step()
            optimizer.zero_grad()
    assert [record.counts["parts"] for record in kept()] == [1] * 5
    assert all("noise_w" not in record.scalars for record in kept())


@pytest.mark.usefixtures("either_way")
def test_parts_after_a_dropped_batch_are_those_of_the_step_alone(kept):
    """Their squares, and what was logged of each: sizes and weights."""
    model = model_of_one_layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sizes, weights = (9, 3, 1), (0.5, 0.75, 0.25)
    expected = 0.0
    with watched(model, optimizer) as watch:
        for step in range(3):
            for part in range(3) if step == 2 else (1, 2):
                before = model.weight.grad
                before = torch.zeros_like(model.weight) if before is None else before.clone()
                loss_at(model, 10 * step + part, weights[part]).backward()
                watch.log(examples=sizes[part], part_weight=weights[part])
                if step == 2 and part == 0:
                    optimizer.zero_grad()
                elif step == 2:
                    expected += float((model.weight.grad - before).square().sum()) / weights[part]
            optimizer.step()
            optimizer.zero_grad()
    second, third = kept()[1:]
    assert third.counts["parts"] == 2
    assert value(third, "part_sq", "weight") == pytest.approx(expected, rel=1e-5)
    assert third.scalars["noise_w"] == pytest.approx(0.75 * 0.25 / 3 + 0.25 * 0.75 / 1)
    assert third.scalars["noise_w"] == second.scalars["noise_w"]
    assert third.counts["examples"] == 13, "what was read of the data counts all the same"


def test_the_first_of_two_passes_of_sharpness_aware_minimization_is_no_part(kept):
    model = model_of_one_layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        for step in range(3):
            loss_at(model, step).backward()
            with torch.no_grad():
                climb = 0.05 * model.weight.grad / model.weight.grad.norm()
                model.weight += climb
            optimizer.zero_grad()
            loss_at(model, step).backward()
            with torch.no_grad():
                model.weight -= climb
            optimizer.step()
            optimizer.zero_grad()
    assert [record.counts["parts"] for record in kept()] == [1, 1, 1]
    assert set(column(kept()[-1], "part_sq").values()) == {None}


class TwoHeads(nn.Module):
    """One of two heads on a trunk: a pass comes first to the head that its loss is of."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.trunk, self.second = nn.Linear(4, 1), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x, head):
        return getattr(self, head)(torch.tanh(self.trunk(x)))


@pytest.mark.usefixtures("either_way")
def test_a_dropped_batch_is_no_part_where_the_next_pass_comes_first_to_another_parameter(kept):
    model = TwoHeads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, squared = torch.randn(5, 4), []
    with watched(model, optimizer):
        for _ in range(3):
            model(x, "second").square().mean().backward()
            optimizer.zero_grad()
            parts = [torch.autograd.grad(model(x, head).square().mean(), model.trunk.weight) for head in HEADS]
            squared.append(2 * sum(float(own.square().sum()) for (own,) in parts))
            for head in HEADS:
                model(x, head).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [record.counts["parts"] for record in kept()] == [2, 2, 2]
    assert [value(record, "part_sq", "trunk.weight") for record in kept()[1:]] == pytest.approx(squared[1:], rel=1e-5)


def test_what_an_optimizer_has_taken_is_not_dropped_when_its_gradient_is_gone(kept):
    """Two losses; the optimizer of the first steps and lets go before the second: they are no parts of one batch."""
    models = {"one": model_of_one_layer(1), "other": model_of_one_layer(2)}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.1) for name, model in models.items()}
    with watched(models, list(optimizers.values())):
        for step in range(3):
            for name, model in models.items():
                loss_at(model, step).backward()
                optimizers[name].step()
                optimizers[name].zero_grad()
    assert all("parts" not in record.counts for record in kept())


def test_the_steps_of_a_critic_that_steps_more_often_have_one_part_each(kept):
    models = {"generator": model_of_one_layer(1), "critic": model_of_one_layer(2)}
    generator, critic = (torch.optim.SGD(model.parameters(), lr=0.1) for model in models.values())
    with watched(models, [generator, critic]):
        for turn in range(8):
            for optimizer, name in ((critic, "critic"), *([(generator, "generator")] if turn % 4 == 3 else [])):
                optimizer.zero_grad()
                loss_at(models[name], turn).backward()
                optimizer.step()
    assert {record.counts.get("parts", 1) for record in kept()} == {1}
    assert all(set(column(record, "part_sq").values()) == {None} for record in kept())


def test_an_optimizer_that_took_the_place_of_the_watched_one_is_said_once(kept, caplog):
    model = model_of_one_layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        for step in range(250):
            if step == 2:
                optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
            loss = loss_at(model, step)
            loss.backward()
            watch.log(loss=loss)
            optimizer.step()
            optimizer.zero_grad()
    said = [message for message in caplog.messages if "dropped one after another" in message]
    assert len(said) == 1
    assert "if the optimizer was replaced, close this watch and make another one" in said[0]
    assert [record.step for record in kept()] == [1, 2]


def test_nothing_adds_up_while_no_step_ends(kept, caplog, monkeypatch):
    monkeypatch.setattr(scalars, "MOST_CALLS", 5)
    model = model_of_one_layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        for batch in range(40):
            loss = loss_at(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            watch.log(loss=loss, examples=5, part_weight=1.0)
            optimizer.zero_grad()
        held = watch._session.open
        kept_of_it = len(held.log.losses), len(held.log.sums["examples"]), len(held.log.part_weights)
        assert max(kept_of_it) == 5
        assert len(watch._session._held._calls) <= 5
        assert len(held.clips.clips) == len(held.clips.noted) == 1
        loss_at(model, 0).backward()
        optimizer.step()
    assert sum("log was called 5 times within one step" in message for message in caplog.messages) == 1
    assert len(kept()) == 1


def test_a_pass_that_goes_on_after_one_within_it_is_counted_once(kept):
    """An embedding below blocks that are recomputed by backward passes of their own."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"embed": nn.Embedding(9, 4), "inner": nn.Linear(4, 4), "head": nn.Linear(4, 1)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        for step in range(3):
            hidden = model["embed"](torch.arange(step, step + 5))
            hidden = checkpoint(model["inner"], hidden, use_reentrant=True)
            model["head"](hidden).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [record.counts["parts"] for record in kept()] == [1, 1, 1]


def test_gradients_that_no_backward_pass_brings_are_not_looked_for_again_and_again(kept):
    model = model_of_one_layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hooks = []
    with watched(model, optimizer) as watch:
        for step in range(6):
            if step == 4:
                loss_at(model, step).backward()
            else:
                model.weight.grad = torch.full_like(model.weight, 2.0)
            optimizer.step()
            optimizer.zero_grad()
            hooks.append(list(watch._session.measuring.backward._handles))
    assert hooks[0] == hooks[1] == hooks[4]
    assert hooks[5] != hooks[4], "a pass was seen, so the next that is not may have another reason"
    assert value(kept()[3], "grad_sq", "weight") == 16.0
    assert kept()[4].counts["parts"] == 1


def test_a_loss_that_is_not_finite_and_whose_gradient_is_dropped_is_still_recorded(kept):
    model = model_of_one_layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        for number in (math.nan, 1.0):
            loss_at(model, 0).backward()
            watch.log(loss=number)
            if number == 1.0:
                optimizer.step()
            optimizer.zero_grad()
    assert [math.isnan(record.scalars["loss"]) for record in kept()] == [True]
    assert kept()[0].counts["parts"] == 1
