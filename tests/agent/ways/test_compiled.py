"""torch.compile of the model, and of the whole step with the optimizer in it."""

from __future__ import annotations

import shutil

import pytest
import torch
from agent.watched_training import attention, loss_of, watched
from agent.ways.plain import Plain
from agent.ways.way import way

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler"
    ),
    pytest.mark.filterwarnings("ignore"),
]


@way("torch.compile of the model")
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_a_compiled_model(backend, kept, the_way):
    torch._dynamo.reset()
    model = attention()
    plain, compiled = Plain(model), torch.compile(model, backend=backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    expected = []
    with watched(compiled, optimizer):
        for step in range(3):
            losses = [lambda m, s=2 * step + j: loss_of(m, 4, s) / 2 for j in range(2)]
            expected.append(plain.step(model, *losses))
            for loss in losses:
                loss(compiled).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            optimizer.step()
            optimizer.zero_grad()
            expected[-1].after = plain.weights(model)
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, rel=1e-4, parts=index > 0)


@way("torch.compile of the step, with watch.step() after it")
@pytest.mark.parametrize("backend", ["inductor", "aot_eager"])
def test_a_compiled_optimizer_step(backend, kept, the_way):
    torch._dynamo.reset()
    model = attention()
    plain = Plain(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.03))

    @torch.compile(backend=backend)
    def update():
        optimizer.step()

    expected = []
    with watched(model, optimizer) as watch:
        for step in range(3):
            losses = [lambda m, s=2 * step + j: loss_of(m, 4, s) / 2 for j in range(2)]
            expected.append(plain.step(model, *losses))
            for loss in losses:
                loss(model).backward()
            update()
            watch.step()
            expected[-1].after = plain.weights(model)
            optimizer.zero_grad()
    assert [record.step for record in kept()] == [1, 2, 3]
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, rel=1e-4, parts=index > 0)


@way("torch.compile of the step, with watch.step() after it")
def test_a_step_compiled_from_the_forward_pass_on(kept, the_way):
    torch._dynamo.reset()
    model = attention()
    plain, optimizer = Plain(model), torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.03))

    @torch.compile(backend="aot_eager")
    def train_step(seed):
        loss = loss_of(model, 4, seed)
        loss.backward()
        optimizer.step()
        return loss.detach()

    expected = []
    with watched(model, optimizer) as watch:
        for step in range(3):
            expected.append(plain.step(model, lambda m, s=step: loss_of(m, 4, s)))
            train_step(step)
            watch.step()
            expected[-1].after = plain.weights(model)
            optimizer.zero_grad()
    assert [record.step for record in kept()] == [1, 2, 3]
    for record, step in zip(kept(), expected, strict=True):
        the_way.check(record, step, rel=1e-4)
