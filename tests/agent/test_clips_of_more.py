"""Clips of more parameters than the layers recorded: those just unfrozen, and those that no watched optimizer has."""

from __future__ import annotations

import pytest
import torch
from agent.watched_training import assert_close, attention, column, gradients, loss_of, squares, total_norm, watched
from torch.nn.utils import clip_grad_norm_

pytestmark = pytest.mark.usefixtures("either_way")

LIMIT = 0.1


def by_torch(model, _):
    clip_grad_norm_(model.parameters(), LIMIT)


def by_torch_and_logged(model, watch):
    watch.log(grad_norm=clip_grad_norm_(model.parameters(), LIMIT))


def by_own_code_and_logged(model, watch):
    norm = total_norm(gradients(model))
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.mul_(min(1.0, LIMIT / norm))
    watch.log(grad_norm=norm)


def in_part_by_torch_and_logged_as_a_whole(model, watch):
    watch.log(grad_norm=total_norm(gradients(model)))
    clip_grad_norm_([p for name, p in model.named_parameters() if not name.startswith("embed")], LIMIT)


def not_at_all(model, watch):
    pass


CLIPS = [
    by_torch,
    by_torch_and_logged,
    by_own_code_and_logged,
    in_part_by_torch_and_logged_as_a_whole,
    not_at_all,
]


def step_of(model, optimizer, watch, clip, seed):
    """One step; gives the squares of the gradient before it was clipped, and its norm."""
    loss_of(model, 6, seed).backward()
    before = gradients(model)
    clip(model, watch)
    optimizer.step()
    optimizer.zero_grad()
    return squares(before), total_norm(before)


@pytest.mark.parametrize("clip", CLIPS)
def test_the_first_step_after_layers_were_unfrozen_has_right_numbers_or_none(clip, kept):
    model = attention()
    model.embed.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    expected = []
    with watched(model, optimizer) as watch:
        for step in range(5):
            if step == 2:
                model.embed.requires_grad_(True)
            expected.append(step_of(model, optimizer, watch, clip, step))
        assert watch.status()["norms_that_disagreed"] == 0
    assert ["embed.weight" in record.table.names for record in kept()] == [False] * 3 + [True] * 2
    for index, (record, (squared, norm)) in enumerate(zip(kept(), expected, strict=True)):
        known = {name: squared[name] for name in record.table.names}
        if index == 2 and clip is by_own_code_and_logged:
            known = dict.fromkeys(known)
        assert_close(column(record, "grad_sq"), known, 1e-4)
        assert set(column(record, "update_sq").values()) != {None}
        if index == 2 and clip is not_at_all:
            assert "grad_norm" not in record.scalars
        else:
            assert record.scalars["grad_norm"] == pytest.approx(norm, rel=1e-5)
        assert ("update_norm" in record.scalars) == (index != 2)


@pytest.mark.parametrize("clip", [by_torch, by_torch_and_logged])
def test_a_clip_that_covers_parameters_of_no_watched_optimizer_is_undone(clip, kept):
    model = attention()
    optimizer = torch.optim.AdamW([*model.norm.parameters(), *model.head.parameters()], lr=0.01)
    expected = []
    with watched(model, optimizer) as watch:
        for step in range(3):
            expected.append(step_of(model, optimizer, watch, clip, step))
            model.zero_grad()
        assert watch.status()["norms_that_disagreed"] == 0
    for record, (squared, norm) in zip(kept(), expected, strict=True):
        assert_close(column(record, "grad_sq"), {name: squared[name] for name in record.table.names}, 1e-4)
        assert record.scalars["grad_norm"] == pytest.approx(norm, rel=1e-5)
