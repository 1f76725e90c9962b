"""What a script chooses as torch's default type and device is for its own tensors; the agent's are as ever."""

from __future__ import annotations

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
    tokens,
    value,
    watched,
    weights,
)
from torch import nn


@pytest.fixture
def default_type():
    """Sets the default type; it is float32 again after the test."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def default_device():
    """Sets the default device; there is none again after the test."""
    yield torch.set_default_device
    torch.set_default_device("cpu")
    torch.set_default_device(None)


def numbers_are_right(kept, model, optimizer, losses, statistics=("grad_l1", "moment_sq", "act_max"), **options):
    """Train by these losses; all numbers of all steps are those of a float64 row."""
    expected = []
    with watched(model, optimizer, drift="off", **options) as watch:
        for loss in losses:
            loss().backward()
            expected.append((squares(gradients(model)), largest(gradients(model))))
            optimizer.step()
            optimizer.zero_grad()
        sizes = squares(weights(model))
        reasons = watch.status()["not_measured"]
    assert reasons == []
    for record, (grad_sq, grad_max) in zip(kept(), expected, strict=True):
        assert_close(column(record, "grad_sq"), grad_sq, 1e-5, 1e-12)
        assert_close(column(record, "grad_max"), grad_max, 1e-6, 1e-12)
        assert set(statistics) <= set(record.statistics)
    assert_close(column(kept()[-1], "weight_sq"), sizes, 1e-5)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("own", [torch.bfloat16, torch.float32])
def test_the_default_type_changes_no_number(own, default, default_type, kept):
    model = attention().to(own)
    model.unused.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    default_type(default)
    losses = [lambda s=s: loss_of(model, 4, s).float() for s in range(3)]
    with torch.no_grad():
        model.unused.weight.zero_()
    trained = nn.ModuleDict({name: module for name, module in model.named_children() if name != "unused"})
    numbers_are_right(kept, trained, optimizer, losses)


@pytest.mark.usefixtures("either_way")
def test_parts_are_as_wide_as_ever_under_a_narrow_default(default_type, kept):
    torch.manual_seed(0)
    model = nn.Linear(64, 200, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    default_type(torch.bfloat16)
    with watched(model, optimizer, drift="off"):
        for _ in range(2):
            expected = 0.0
            for part in range(2):
                before = torch.zeros_like(model.weight) if model.weight.grad is None else model.weight.grad.clone()
                (model(torch.randn(4, 64, dtype=torch.float32)).square().mean() * (part + 1)).backward()
                expected += 2 * float((model.weight.grad - before).double().square().sum())
            optimizer.step()
            optimizer.zero_grad()
    assert value(kept()[-1], "part_sq", "weight") == pytest.approx(expected, rel=1e-5)


@pytest.mark.usefixtures("either_way")
def test_the_default_device_is_not_where_the_agent_s_tensors_are(default_device, kept):
    model = attention()
    del model.unused
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches = [tokens(4, seed) for seed in range(3)]
    default_device("meta")
    losses = [lambda b=b: nn.functional.cross_entropy(model(b[0]).flatten(0, 1), b[1].flatten()) for b in batches]
    numbers_are_right(kept, model, optimizer, losses, spectra=1)
    assert len(kept()[0].spectra) > 0
