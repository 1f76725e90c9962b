"""Several backward passes a step: parts of unequal sizes, their losses divided or not, clipped and scaled."""

from __future__ import annotations

import pytest
import torch
from agent.watched_training import attention, loss_of, watched
from agent.ways.plain import Plain
from agent.ways.way import way
from torch.nn.utils import clip_grad_norm_, clip_grad_value_


@way("Gradient accumulation, parts of any sizes")
@pytest.mark.parametrize("divided", [True, False])
def test_parts_of_unequal_sizes(divided, kept, the_way):
    model, sizes = attention(), (5, 2, 1)
    plain, factor = Plain(model), 1 / 3 if divided else 1.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.1)
    expected = []
    with watched(model, optimizer) as watch:
        for step in range(3):
            losses = [lambda m, n=n, s=7 * step + j: loss_of(m, n, s) * factor for j, n in enumerate(sizes)]
            expected.append(plain.step(model, *losses))
            for loss, size in zip(losses, sizes, strict=True):
                loss(model).backward()
                watch.log(examples=size)
            optimizer.step()
            optimizer.zero_grad()
            expected[-1].after = plain.weights(model)
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, parts=index > 0)
        assert record.counts["parts"] == 3
        assert record.counts["examples"] == 8
        assert record.scalars["noise_w"] == pytest.approx(sum((1 / 3) * (2 / 3) / n for n in sizes))


@way("Gradient accumulation, parts of any sizes")
def test_a_step_of_one_part_takes_part_sq_from_no_other(kept, the_way):
    model, counts = attention(), (2, 2, 1, 2, 1, 1, 2, 2)
    plain, optimizer, expected = Plain(model), torch.optim.SGD(model.parameters(), lr=0.3), []
    with watched(model, optimizer):
        for step, count in enumerate(counts):
            losses = [lambda m, s=2 * step + j, n=count: loss_of(m, 4, s) / n for j in range(count)]
            expected.append(plain.beside(model, optimizer, *losses))
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        # the first may be of one part like all after it; after two of one part it is taken so again
        the_way.check(record, step, parts=counts[index] > 1 and index not in (0, 6))


CLIPS = {
    "clip_grad_norm_": lambda model, _: clip_grad_norm_(model.parameters(), 0.05),
    "watch.clip_grad_norm_": lambda _, watch: watch.clip_grad_norm_(0.05),
    "clip_grad_value_": lambda model, _: clip_grad_value_(model.parameters(), 1e-3),
    "foreign": lambda model, watch: foreign_clip(model, watch, 0.05),
}


def foreign_clip(model, watch, limit):
    """A clip that torch knows nothing of; told by log."""
    present = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.cat([g.flatten() for g in present]).norm()
    for gradient in present:
        gradient.mul_(limit / norm)
    watch.log(grad_norm=norm)


@way("Clipping by norm or by value, by torch, by watch.clip_grad_norm_, or by code of your own")
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_clipping_of_accumulated_gradients(clip, scaled, kept, the_way):
    model = attention()
    plain = Plain(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
    expected = []
    with watched(model, optimizer) as watch:
        for step in range(2):
            losses = [lambda m, s=2 * step + j: loss_of(m, 4, s) / 2 for j in range(2)]
            expected.append(plain.step(model, *losses))
            for loss in losses:
                scaler.scale(loss(model)).backward()
            scaler.unscale_(optimizer)
            CLIPS[clip](model, watch)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            expected[-1].after = plain.weights(model)
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, rel=1e-4, parts=index > 0, second="value" not in clip)
