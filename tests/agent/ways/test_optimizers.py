"""Optimizers of every kind: several at once, with closures, from elsewhere, and stepped inside the backward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from agent.watched_training import attention, column, loss_of, watched
from agent.ways.plain import Plain
from agent.ways.way import way


@way("Several optimizers for one model")
def test_two_optimizers_that_share_a_model_and_its_parts(kept, the_way):
    model = attention()
    plain = Plain(model)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    optimizers = [
        torch.optim.SGD(matrices, lr=0.3, momentum=0.9),
        torch.optim.AdamW([p for p in model.parameters() if p.dim() < 2], lr=0.03),
    ]
    expected = []
    with watched(model, optimizers):
        for step in range(3):
            losses = [lambda m, s=2 * step + j: loss_of(m, 4, s) / 2 for j in range(2)]
            expected.append(plain.step(model, *losses))
            for loss in losses:
                loss(model).backward()
            for optimizer in optimizers:
                optimizer.step()
            for optimizer in optimizers:
                optimizer.zero_grad()
            expected[-1].after = plain.weights(model)
    assert [record.counts["parts"] for record in kept()] == [2, 2, 2]
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, parts=index > 0)


@way("Closures (LBFGS)", parts=False)
def test_closures_that_are_called_several_times_are_no_parts(kept, the_way):
    model = attention()
    plain = Plain(model)
    optimizer = torch.optim.LBFGS([p for p in model.parameters() if p is not model.unused.weight], lr=0.1, max_iter=3)
    model.unused.requires_grad_(False)
    expected = []
    with watched(model, optimizer):
        for step in range(3):
            before = plain.weights(model)

            def closure(step=step):
                optimizer.zero_grad()
                expected[step:] = [plain.step(model, lambda m: loss_of(m, 4, step))]
                loss = loss_of(model, 4, step)
                loss.backward()
                return loss

            optimizer.step(closure)
            expected[-1].before, expected[-1].after = before, plain.weights(model)
    for record, step in zip(kept(), expected, strict=True):
        the_way.check(record, step, rel=1e-4)
        assert "noise_w" not in record.scalars
        assert "parts" not in record.counts


class Lion(torch.optim.Optimizer):
    """An optimizer that is not torch's, in the common way: a subclass of its base."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])
        return loss


class Spends(Lion):
    """An optimizer that works on the gradients where they lie, as schedule-free Adam does, or lets go of them."""

    def __init__(self, parameters, lr, how):
        super().__init__(parameters, lr)
        self.how = how

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else closure()
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                gradient = parameter.grad.div_(3 + parameter.square()) if self.how == "divides" else parameter.grad
                parameter.sub_(gradient, alpha=self.param_groups[0]["lr"])
                if self.how != "divides":
                    parameter.grad = None if self.how == "drops" else gradient - gradient.mean()
        return loss


class Unrelated:
    """An optimizer that has nothing to do with torch's base class."""

    def __init__(self, parameters, lr):
        self.param_groups = [{"params": list(parameters), "lr": lr}]

    step = Lion.step

    def zero_grad(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None


def parts_stepped(model, optimizer, the_way, kept):
    """Steps of two parts with watch.step() after each, checked; what the status said before them."""
    plain, expected = Plain(model), []
    with watched(model, optimizer) as watch:
        said = watch.status()["not_measured"]
        for step in range(3):
            losses = [lambda m, s=2 * step + j: loss_of(m, 4, s) / 2 for j in range(2)]
            expected.append(plain.step(model, *losses))
            for loss in losses:
                loss(model).backward()
            optimizer.step()
            expected[-1].after = plain.weights(model)
            watch.step()
            optimizer.zero_grad()
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, parts=index > 0)
        assert record.scalars["learning_rate"] == 0.01
    return said


@way("Optimizers from other libraries")
def test_an_optimizer_from_elsewhere(kept, the_way):
    model = attention()
    model.unused.requires_grad_(False)
    said = parts_stepped(model, Lion(model.parameters(), 0.01), the_way, kept)
    assert any("moments are not measured for Lion, and updates of a few layers at a time" in reason for reason in said)


@way("Optimizers from other libraries")
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("how", ["divides", "centers", "drops"])
def test_an_optimizer_that_changes_the_gradients_that_it_takes(how, clipped, kept, the_way):
    model, expected = attention(), []
    model.unused.requires_grad_(False)
    plain, optimizer = Plain(model), Spends(model.parameters(), 0.3, how)
    with watched(model, optimizer, spectra=1):
        for step in range(4):
            losses = [lambda m, s=2 * step + j: loss_of(m, 4, s) / 2 for j in range(2)]
            expected.append(plain.step(model, *losses))
            for loss in losses:
                loss(model).backward()
            if clipped:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
            expected[-1].after = plain.weights(model)
    first, *others = kept()
    assert set(column(first, "grad_sq").values()) == set(column(first, "grad_max").values()) == {None}
    assert ("grad_norm" in first.scalars, first.spectra) == (clipped, [])
    for record, step in zip(others, expected[1:], strict=True):
        replace(the_way, updates=how != "drops").check(record, step, rel=1e-4, second=False)
        assert "update_dot_grad" not in record.statistics or how != "drops"
        coefficient = record.scalars.get("clip_coefficient", 1.0)
        assert coefficient == pytest.approx(0.05 / step.norm if clipped else 1.0, rel=1e-4)
        assert len(record.spectra) == 5
        for spectrum in record.spectra:
            square = step.grad_sq[record.table.names[spectrum.layer]]
            assert spectrum.aggregates[1] == pytest.approx(square, rel=1e-4)


@way("Optimizers without torch's hooks, with watch.step() after them", updates=False)
@pytest.mark.filterwarnings("ignore:Unrelated cannot be hooked")
def test_an_optimizer_that_takes_no_hooks(kept, the_way):
    model = attention()
    model.unused.requires_grad_(False)
    said = parts_stepped(model, Unrelated(model.parameters(), 0.01), the_way, kept)
    assert any("updates and moments are not measured for Unrelated" in reason for reason in said)


class Lookahead(torch.optim.Optimizer):
    """A wrapper as other libraries have it: an optimizer by class, set up without torch's base, that moves the weights
    once more after the step of the one it wraps."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}
        self.defaults, self.state, self.param_groups = optimizer.defaults, optimizer.state, optimizer.param_groups

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step(closure)
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(0.9)


@way("Optimizers without torch's hooks, with watch.step() after them", updates=False)
@pytest.mark.filterwarnings("ignore:Lookahead cannot be hooked")
def test_a_wrapper_that_moves_the_weights_after_the_step_that_it_wraps(kept, the_way):
    model = attention()
    model.unused.requires_grad_(False)
    said = parts_stepped(model, Lookahead(torch.optim.SGD(model.parameters(), 0.01)), the_way, kept)
    assert any("updates and moments are not measured for Lookahead" in reason for reason in said)


@way("Optimizer step inside the backward pass")
def test_an_optimizer_of_its_own_for_each_tensor_steps_in_the_backward_pass(kept, the_way):
    model = attention()
    model.unused.requires_grad_(False)
    plain = Plain(model)
    own = {p: torch.optim.AdamW([p], lr=0.03) for p in model.parameters() if p.requires_grad}

    def step_now(parameter):
        own[parameter].step()
        own[parameter].zero_grad()

    for parameter in own:
        parameter.register_post_accumulate_grad_hook(step_now)
    expected = []
    with watched(model, list(own.values())) as watch:
        for step in range(3):
            expected.append(plain.step(model, lambda m, s=step: loss_of(m, 4, s)))
            loss = loss_of(model, 4, step)
            loss.backward()
            watch.log(loss=loss)
            expected[-1].after = plain.weights(model)
    assert [record.step for record in kept()] == [1, 2, 3]
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step)
        assert record.scalars["loss"] == pytest.approx(float(loss_of(plain.twin, 4, index).detach()), abs=1)
        assert set(column(record, "part_sq").values()) == {None}


class Warming(torch.optim.AdamW):
    """An optimizer that does something of its own and leaves the rest to the class it is made from."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = min(group["lr"] * 2, 0.1)
        return super().step(closure)


@way("Optimizers from other libraries")
@pytest.mark.parametrize("scaled", [False, True])
def test_a_step_that_calls_the_step_it_was_made_from_is_one(scaled, kept, the_way):
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # torch hooks the step of each class that is used
    model = attention()
    model.unused.requires_grad_(False)
    plain, optimizer = Plain(model), Warming([p for p in model.parameters() if p.requires_grad], lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    expected = []
    with watched(model, optimizer):
        for step in range(3):
            expected.append(plain.step(model, lambda m, s=step: loss_of(m, 4, s)))
            scaler.scale(loss_of(model, 4, step)).backward()
            scaler.step(optimizer)
            scaler.update()
            expected[-1].after = plain.weights(model)
            optimizer.zero_grad()
    assert [record.step for record in kept()] == [1, 2, 3]
    assert [record.scalars["learning_rate"] for record in kept()] == pytest.approx([0.02, 0.04, 0.08])
    for record, step in zip(kept(), expected, strict=True):
        the_way.check(record, step)
