"""Loss scales and half precision: the numbers are those of the unscaled gradient, summed in float32 or wider."""

from __future__ import annotations

import math

import pytest
import torch
from agent.watched_training import attention, loss_of, value, watched
from agent.ways.plain import Plain
from agent.ways.way import way

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.1, fused=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, fused=True),
    "sgd-without-momentum-fused": lambda p: torch.optim.SGD(p, lr=0.3, weight_decay=0.1, fused=True),
}


@way("AMP with GradScaler, fused optimizer or not, with skipped steps")
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_scaled_loss_and_a_step_that_is_skipped(kind, unscaled, kept, the_way):
    model = attention()
    plain, optimizer = Plain(model), OPTIMIZERS[kind](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    expected = []
    with watched(model, optimizer) as watch:
        for step in range(4):
            losses = [lambda m, s=2 * step + j: loss_of(m, 4, s) / 2 for j in range(2)]
            expected.append(plain.step(model, *losses))
            for loss in losses:
                scaler.scale(loss(model)).backward()
            if step == 1:
                model.head.weight.grad[0, 0] = math.inf
            if unscaled:
                scaler.unscale_(optimizer)
            watch.log(loss=1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            expected[-1].after = plain.weights(model)
    assert [record.counts["skipped"] for record in kept()] == [0, 1, 0, 0]
    assert [record.scalars["loss_scale"] for record in kept()] == [2.0**16, 2.0**16, 2.0**15, 2.0**15]
    assert value(kept()[1], "grad_nonfinite", "head.weight") == 1
    assert {value(kept()[1], "update_sq", name) for name in kept()[1].table.names} == {0.0}
    for step in (0, 2, 3):
        the_way.check(kept()[step], expected[step], rel=1e-4, parts=step > 0)


@way("bfloat16 autocast")
def test_bfloat16_autocast(kept, the_way):
    model = attention()
    plain, optimizer = Plain(model), torch.optim.AdamW(model.parameters(), lr=0.03)
    expected = []
    with watched(model, optimizer):
        for step in range(3):
            rough = plain.step(model, lambda m, s=step: loss_of(m, 8, s))
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, 8, step)
            loss.backward()
            expected.append(plain.given(model))
            assert expected[-1].norm == pytest.approx(rough.norm, rel=0.05)
            optimizer.step()
            optimizer.zero_grad()
            expected[-1].after = plain.weights(model)
    for record, step in zip(kept(), expected, strict=True):
        the_way.check(record, step)


@way("A model given another type after the watch was made (model.to)")
@pytest.mark.parametrize("at", [0, 2])
def test_a_model_that_becomes_wider(at, kept, the_way):
    model = attention()
    plain, optimizer = Plain(model), torch.optim.SGD(model.parameters(), lr=0.3)
    expected = []
    with watched(model, optimizer):
        for step in range(5):
            if step == at:
                model.to(torch.float64)
            losses = [lambda m, s=2 * step + j: loss_of(m, 4, s) / 2 for j in range(2)]
            expected.append(plain.beside(model, optimizer, *losses))
    for step, (record, numbers) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, numbers, parts=step not in (0, at))


@way("bfloat16 weights")
def test_weights_in_bfloat16_are_summed_in_float32(kept, the_way):
    model = attention().bfloat16()
    plain, optimizer = Plain(model), torch.optim.SGD(model.parameters(), lr=2.0)
    expected = []
    with watched(model, optimizer):
        for step in range(2):
            loss_of(model, 8, step).backward()
            expected.append(plain.given(model))
            optimizer.step()
            optimizer.zero_grad()
            expected[-1].after = plain.weights(model)
    for record, step in zip(kept(), expected, strict=True):
        intended = {n: None if g is None else 4.0 * g for n, g in step.grad_sq.items()}
        the_way.check(record, step, update=math.inf)
        for name, square in intended.items():
            assert value(record, "update_sq", name) == pytest.approx(square or 0.0, rel=1e-5)
