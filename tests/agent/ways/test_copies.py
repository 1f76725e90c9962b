"""Copies, files and checkpoints of a watched training."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from agent.watched_training import KeepingTransport, attention, loss_of, watched
from agent.ways.plain import Plain
from agent.ways.way import way
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@way("Copies of the model (EMA, SWA, deepcopy) and torch.save")
def test_an_average_of_the_weights_is_kept_beside(kept, the_way):
    model = attention()
    plain, optimizer = Plain(model), torch.optim.AdamW(model.parameters(), lr=0.03)
    expected = []
    with watched(model, optimizer):
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        by_hand = copy.deepcopy(model.state_dict())
        for step in range(3):
            losses = [lambda m, s=2 * step + j: loss_of(m, 4, s) / 2 for j in range(2)]
            expected.append(plain.step(model, *losses))
            for loss in losses:
                loss(model).backward()
            with torch.no_grad():
                loss_of(average, 4, step)
            loss_of(copy.deepcopy(model), 4, step).backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
            by_hand = {n: 0.9 * by_hand[n] + 0.1 * w if step else w.clone() for n, w in model.state_dict().items()}
            expected[-1].after = plain.weights(model)
    for name, weight in average.module.state_dict().items():
        assert torch.allclose(weight, by_hand[name])
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, parts=index > 0)
        assert record.counts["parts"] == 2


@way("Resuming from a checkpoint with watch.state_dict()")
def test_a_resumed_run_goes_on_where_the_checkpoint_was_made(kept, the_way):
    def steps(model, optimizer, watch, first, last):
        plain, expected = Plain(model), []
        for step in range(first, last):
            expected.append(plain.step(model, lambda m, s=step: loss_of(m, 4, s)))
            loss_of(model, 4, step).backward()
            watch.log(loss=float(step), tokens=10)
            optimizer.step()
            optimizer.zero_grad()
            expected[-1].after = plain.weights(model)
        return expected

    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    file = io.BytesIO()
    with watched(model, optimizer) as watch:
        steps(model, optimizer, watch, 0, 3)
        torch.save(
            {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "watch": watch.state_dict()}, file
        )
        steps(model, optimizer, watch, 3, 5)
    undisturbed = copy.deepcopy(model.state_dict())
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    model = attention(seed=9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    with watched(model, optimizer, resume="auto") as watch:
        watch.load_state_dict(saved["watch"])
        expected = steps(model, optimizer, watch, 3, 5)
    assert KeepingTransport.last.arguments["start_step"] == 3
    assert KeepingTransport.last.arguments["resume"] == "auto"
    assert [(r.step, r.scalars["loss"]) for r in kept()] == [(4, 3.0), (5, 4.0)]
    for record, step in zip(kept(), expected, strict=True):
        the_way.check(record, step)
    assert all(torch.equal(undisturbed[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("state", [{"version": 2, "step": 3}, {"version": 1, "step": "3"}, {}])
@pytest.mark.usefixtures("kept")
def test_a_state_of_another_kind_is_refused_and_named(state):
    model = attention()
    with (
        watched(model, torch.optim.SGD(model.parameters(), lr=0.1)) as watch,
        pytest.raises(ValueError, match=r"state must come from watch.state_dict\(\), got"),
    ):
        watch.load_state_dict(state)
