"""How far the weights have come from the start, against float64; and what a checkpoint brings of it."""

from __future__ import annotations

import io

import gradspectra
import numpy as np
import pytest
import reference
import torch
from agent.service import service
from agent.watched_training import (
    KeepingTransport,
    assert_close,
    attention,
    column,
    loss_of,
    squares,
    value,
    watched,
    weights,
)
from gradspectra import drift_samples, measuring
from gradspectra.drift import BLOCK, FEWEST, Drift, sample
from torch import nn


def far(model, start):
    """Squared distance of each layer from the start, in float64."""
    return squares({name: now - start[name] for name, now in weights(model).items()})


def products(now, start):
    """Inner product of each layer with its start, in float64."""
    return {name: float((array * start[name]).sum()) for name, array in now.items()}


def train(model, optimizer, watch, steps, first=0):
    distances = []
    for step in range(first, first + steps):
        loss_of(model, 4, step).backward()
        watch.log(loss=1.0, tokens=torch.tensor(28))
        optimizer.step()
        optimizer.zero_grad()
        distances.append(weights(model))
    return distances


@pytest.mark.parametrize("drift", ["sampled", "exact"])
def test_small_layers_are_measured_whole(drift, kept):
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    start = weights(model)
    with watched(model, optimizer, drift=drift) as watch:
        taken = train(model, optimizer, watch, 3)
    assert KeepingTransport.last.arguments["environment"]["drift"] == drift
    for record, now in zip(kept(), taken, strict=True):
        assert_close(
            column(record, "drift_sq"), squares({name: w - start[name] for name, w in now.items()}), 1e-5, 1e-12
        )
        expected = {name: product or None for name, product in products(now, start).items()}
        assert_close(column(record, "weight_dot_init"), expected, 1e-5, 1e-7)
        assert expected["norm.bias"] is None


@pytest.mark.parametrize("together", [10, 100, 10_000])
def test_by_numpy_it_is_measured_of_many_layers_at_once_and_by_torch_of_large_ones(together, kept, monkeypatch):
    monkeypatch.setenv("GRADSPECTRA_FUSED", "off")
    monkeypatch.setattr(drift_samples, "CHUNK", together)
    by_torch = []
    original = Drift._sums
    monkeypatch.setattr(Drift, "_sums", staticmethod(lambda *own: by_torch.append(own[2].numel()) or original(*own)))
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    start = weights(model)
    with watched(model, optimizer) as watch:
        train(model, optimizer, watch, 2)
    sizes = {name: p.numel() // (3 if name == "qkv.weight" else 1) for name, p in model.named_parameters()}
    assert set(by_torch) == {size for size in sizes.values() if size > together}
    now = weights(model)
    assert_close(column(kept()[-1], "drift_sq"), far(model, start), 1e-5, 1e-12)
    expected = {name: product or None for name, product in products(now, start).items()}
    assert_close(column(kept()[-1], "weight_dot_init"), expected, 1e-5, 1e-7)


def wander(model, optimizer, steps):
    """Steps in random directions, so that the distance is another one in each column."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for _ in range(steps):
            for parameter in model.parameters():
                size = torch.linspace(0.5, 2, parameter.shape[-1])
                parameter.grad = (size * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
            optimizer.step()


@pytest.mark.parametrize(("drift", "error"), [("sampled", 0.03), ("exact", 1e-5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_large_layer_is_sampled_alike_over_its_columns_and_scaled_up(drift, error, dtype, kept):
    model = nn.ModuleDict({"embed": nn.Embedding(1000, 256), "wide": nn.Linear(512, 300)}).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    start = weights(model)
    with watched(model, optimizer, drift=drift):
        wander(model, optimizer, 2)
    assert_close(column(kept()[-1], "drift_sq"), far(model, start), error)
    now = weights(model)
    whole = squares(now)
    products_error = {name: error * whole[name] for name in now}
    for name, product in products(now, start).items():
        assert abs(value(kept()[-1], "weight_dot_init", name) - product) <= 2 * products_error[name]


@pytest.mark.parametrize("width", [64, 256, 768, 1000, 4096])
def test_a_sample_has_at_least_4096_entries_of_every_column_and_at_most_all(width):
    for rows in (3, 40, 300):
        numbers = torch.arange(rows * width)
        chosen = sample(numbers)
        assert chosen.numel() >= min(FEWEST, rows * width)
        assert chosen.data_ptr() == numbers.data_ptr()
        if rows * width > 64 * 4200:
            assert chosen.numel() < 0.02 * rows * width
        if chosen.dim() == 2:
            hits = np.bincount((chosen % width).flatten().numpy(), minlength=width)
            assert hits.min() > 0.3 * hits.mean() or rows < 61
            assert chosen.shape[1] == BLOCK


def test_within_a_budget_every_nth_recorded_step_has_it(kept, monkeypatch):
    monkeypatch.setattr(measuring, "TURN", 2)
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, budget=1.0) as watch:
        train(model, optimizer, watch, 12)
    recorded = [record for record in kept() if record.statistics]
    assert [i for i, r in enumerate(recorded) if "drift_sq" in r.statistics] == list(range(0, len(recorded), 2))
    assert len(recorded) >= 3


def test_it_can_be_left_out(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, drift="off") as watch:
        train(model, optimizer, watch, 1)
        assert watch.state_dict()["drift"] == {}
    assert "drift_sq" not in kept()[0].statistics


def test_a_layer_that_comes_later_starts_when_it_comes_and_the_others_keep_their_start(kept):
    model = attention()
    model.head.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = weights(model)
    with watched(model, optimizer) as watch:
        train(model, optimizer, watch, 2)
        model.head.requires_grad_(True)
        train(model, optimizer, watch, 1)
        start["head.weight"] = weights(model)["head.weight"]
        train(model, optimizer, watch, 2)
    expected = far(model, start)
    for name in ("head.weight", "qkv.weight[q]"):
        assert value(kept()[-1], "drift_sq", name) == pytest.approx(expected[name], rel=1e-5)


def test_a_checkpoint_brings_steps_tokens_and_the_start(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start, file = weights(model), io.BytesIO()
    with watched(model, optimizer) as watch:
        train(model, optimizer, watch, 3)
        torch.save({"model": model.state_dict(), "watch": watch.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert (saved["watch"]["step"], saved["watch"]["tokens"]) == (3, 84)
    model = attention(seed=9)
    model.load_state_dict(saved["model"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        watch.load_state_dict(saved["watch"])
        train(model, optimizer, watch, 2, 3)
        again = watch.state_dict()
    assert (again["step"], again["tokens"]) == (5, 140)
    assert [record.step for record in kept()] == [4, 5]
    assert_close(column(kept()[-1], "drift_sq"), far(model, start), 1e-5, 1e-12)


@pytest.mark.usefixtures("kept")
def test_a_checkpoint_of_a_watch_that_is_not_enabled_still_has_what_was_loaded():
    model = attention()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        train(model, optimizer, watch, 2)
        state = watch.state_dict()
    with watched(model, optimizer, enabled=False) as watch:
        watch.load_state_dict(state)
        train(model, optimizer, watch, 2, 2)
        again = watch.state_dict()
    assert not KeepingTransport.last.started
    assert (again["step"], again["tokens"], again["run_id"]) == (4, 56, state["run_id"])
    assert again["drift"].keys() == state["drift"].keys()


@pytest.mark.usefixtures("kept")
def test_a_state_that_comes_after_the_run_was_begun_is_refused():
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        train(model, optimizer, watch, 2)
        state = watch.state_dict()
    with watched(model, optimizer) as watch:
        assert watch.run_id == "here"
        with pytest.raises(ValueError, match="must come before log, run_id and url"):
            watch.load_state_dict(state)


@pytest.mark.slow
def test_the_server_gives_it_as_a_distance_and_relative_to_the_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "TURN", 2)
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start, distances, turns = weights(model), [], []
    with service(tmp_path / "data") as address:
        with watched(
            model, optimizer, server=address, spool=tmp_path / "spool", budget=1.0, every=2, run="drifting"
        ) as watch:
            for step in range(16):
                train(model, optimizer, watch, 1, step)
                now = weights(model)["head.weight"]
                distances.append((far(model, start)["head.weight"], np.square(now).sum()))
                turns.append(reference.rotation(now.ravel(), start["head.weight"].ravel()))
        run = gradspectra.Client(address).run(watch.run_id)
        norm, ratio, rotation = (run.layers(name) for name in ("drift_norm", "drift_ratio", "rotation"))
    assert norm.steps.tolist() == ratio.steps.tolist()
    assert len(norm.steps) >= 2
    moved, whole = np.sqrt(np.array(distances)[norm.steps - 1].T)
    assert norm["head.weight"] == pytest.approx(moved, rel=1e-5)
    assert ratio["head.weight"] == pytest.approx(moved / whole, rel=1e-5)
    assert rotation["head.weight"] == pytest.approx(np.array(turns)[rotation.steps - 1], rel=1e-3, abs=1e-6)
