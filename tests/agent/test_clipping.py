"""The gradient before clipping, whoever clips it and however it was imported."""

from __future__ import annotations

import math

import numpy as np
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
    total_norm,
    value,
    watched,
)
from gradspectra.clipping import missing
from torch.nn.utils import clip_grad, clip_grad_norm_, clip_grad_value_

by_name_norm, by_name_value = clip_grad_norm_, clip_grad_value_


def step_clipped(clip, kept, **options):
    """One step whose gradient clip(model, watch) changes; gives the gradient before and the record."""
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, **options) as watch:
        (100 * loss_of(model, 6, 0)).backward()
        before = gradients(model)
        clip(model, watch)
        optimizer.step()
    return before, kept()[0]


@pytest.mark.parametrize(
    "clip",
    [
        lambda model, _: torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5),
        lambda model, _: by_name_norm(list(model.parameters()), 0.5, foreach=True),
        lambda model, _: by_name_norm(model.parameters(), 0.5, foreach=False),
        lambda _, watch: watch.clip_grad_norm_(0.5),
        lambda model, _: (by_name_norm(model.parameters(), 9.0), by_name_norm(model.parameters(), 0.5)),
    ],
    ids=["module", "foreach", "for-loop", "watch", "twice"],
)
def test_layers_and_norm_are_those_before_a_clipping_by_norm(clip, kept):
    before, record = step_clipped(clip, kept)
    assert_close(column(record, "grad_sq"), squares(before), 1e-5)
    assert_close(column(record, "grad_max"), largest(before), 1e-5)
    assert record.scalars["grad_norm"] == pytest.approx(total_norm(before), rel=1e-6)
    assert record.scalars["clip_threshold"] == 0.5
    assert record.scalars["clip_coefficient"] <= 0.5 / 9.0 * 1.001


@pytest.mark.parametrize("foreach", [None, False])
def test_layers_are_those_before_a_clipping_by_value(foreach, kept):
    before, record = step_clipped(lambda model, _: by_name_value(model.parameters(), 0.1, foreach), kept)
    assert_close(column(record, "grad_sq"), squares(before), 1e-5)
    assert_close(column(record, "grad_max"), largest(before), 1e-6)
    assert record.scalars["grad_norm"] == pytest.approx(total_norm(before), rel=1e-6)


def test_a_norm_clipped_before_its_values_are_clipped_is_undone(kept):
    def both(model, _):
        clip_grad_norm_(model.parameters(), 2.0)
        clip_grad_value_(model.parameters(), 0.05)

    before, record = step_clipped(both, kept)
    assert_close(column(record, "grad_sq"), squares(before), 1e-5)
    assert record.scalars["grad_norm"] == pytest.approx(total_norm(before), rel=1e-6)


def test_a_clip_that_only_the_user_knows_of_is_told_by_log(kept):
    def foreign(model, watch):
        norm = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None))
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.25 / norm)
        watch.log(grad_norm=norm)

    before, record = step_clipped(foreign, kept)
    assert_close(column(record, "grad_sq"), squares(before), 1e-5)
    assert record.scalars["grad_norm"] == pytest.approx(total_norm(before), rel=1e-6)


def test_parameters_clipped_apart_give_the_whole_norm(kept):
    def apart(model, _):
        own = [model.qkv.weight, model.qkv.bias]
        clip_grad_norm_(own, 0.5)
        clip_grad_norm_([p for p in model.parameters() if all(p is not o for o in own)], 0.01)

    before, record = step_clipped(apart, kept)
    assert_close(column(record, "grad_sq"), squares(before), 1e-5)
    assert record.scalars["grad_norm"] == pytest.approx(total_norm(before), rel=1e-6)


def test_a_norm_of_another_order_is_undone_and_not_taken_for_the_euclidean(kept):
    before, record = step_clipped(lambda m, _: clip_grad_norm_(m.parameters(), 0.01, norm_type=math.inf), kept)
    assert_close(column(record, "grad_sq"), squares(before), 1e-5)
    assert record.scalars["grad_norm"] == pytest.approx(total_norm(before), rel=1e-6)


def test_a_norm_that_is_not_finite_does_not_hide_which_layer_broke(kept):
    def spoil(model, _):
        model.head.weight.grad[0, 0] = math.inf
        clip_grad_norm_(model.parameters(), 1.0)

    before, record = step_clipped(spoil, kept)
    assert value(record, "grad_nonfinite", "head.weight") == 1
    others = {n: c for n, c in column(record, "grad_nonfinite").items() if n != "head.weight"}
    assert set(others.values()) == {0, None}
    v_square = float(np.square(before["qkv.weight[v]"]).sum())
    assert value(record, "grad_sq", "qkv.weight[v]") == pytest.approx(v_square, rel=1e-5)
    assert record.scalars["grad_norm"] == math.inf


def test_the_norm_is_known_at_steps_whose_layers_are_not_measured(kept):
    before, record = step_clipped(lambda model, _: clip_grad_norm_(model.parameters(), 0.5), kept, every=5)
    assert record.values is None
    assert record.scalars["grad_norm"] == pytest.approx(total_norm(before), rel=1e-6)


def skipping(kept, clip, to_none, spoil=None):
    """Steps of which every second batch is clipped, then left out; gives the gradients before and the records."""
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = []
    with watched(model, optimizer, spectra=1) as watch:
        for batch in range(6):
            ((1000 if batch % 2 else 10) * loss_of(model, 6, batch)).backward()
            taken = batch % 2 == 0
            if taken:
                before.append(gradients(model))
            elif spoil is not None:
                model.head.weight.grad[0, 0] = spoil
            clip(model)
            if taken:
                optimizer.step()
            optimizer.zero_grad(set_to_none=to_none)
        watch.log(loss=1.0)
    return before, kept(), watch


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("spoil", [None, math.nan, math.inf])
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("by", ["norm", "value"])
def test_a_batch_that_is_clipped_and_then_left_out_is_no_part_of_the_step(by, to_none, spoil, kept):
    clip = {
        "norm": lambda model: clip_grad_norm_(model.parameters(), 0.5),
        "value": lambda model: clip_grad_value_(model.parameters(), 0.1),
    }
    before, records, watch = skipping(kept, clip[by], to_none, spoil)
    for gradient, record in zip(before, records, strict=True):
        assert_close(column(record, "grad_sq"), squares(gradient), 1e-5)
        assert record.scalars["grad_norm"] == pytest.approx(total_norm(gradient), rel=1e-5)
        assert set(column(record, "grad_nonfinite").values()) <= {0, None}
        layers = [record.table.names[spectrum.layer] for spectrum in record.spectra]
        assert len(layers) == len(set(layers)) > 0
        for spectrum in record.spectra:
            square = float(np.square(gradient[record.table.names[spectrum.layer]]).sum())
            assert spectrum.aggregates[1] == pytest.approx(square, rel=1e-3)
    assert watch.status()["norms_that_disagreed"] == 0


def test_a_clip_that_is_left_out_of_the_step_has_no_part_in_one_without_a_clip(kept):
    def sometimes(model):
        if total_norm(gradients(model)) > 100:
            clip_grad_norm_(model.parameters(), 0.5)

    before, records, _ = skipping(kept, sometimes, True)
    for gradient, record in zip(before, records, strict=True):
        assert_close(column(record, "grad_sq"), squares(gradient), 1e-5)
        assert record.scalars["grad_norm"] == pytest.approx(total_norm(gradient), rel=1e-5)
        assert "clip_coefficient" not in record.scalars


def test_a_clip_stays_while_another_model_s_pass_comes_after_it(kept):
    """Two models, each clipped after its own pass, before both optimizers step."""
    models = {"one": attention(1), "other": attention(2)}
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models.values()]
    with watched(models, optimizers) as watch:
        for step in range(2):
            before = {}
            for name, model in models.items():
                model.zero_grad()
                (10 * loss_of(model, 6, step)).backward()
                before |= {f"{name}.{layer}": square for layer, square in squares(gradients(model)).items()}
                clip_grad_norm_(model.parameters(), 0.5)
            for optimizer in optimizers:
                optimizer.step()
        watch.log(loss=1.0)
    assert_close(column(kept()[-1], "grad_sq"), before, 1e-5)


def test_each_call_of_a_closure_is_clipped_on_its_own(kept):
    model = attention()
    optimizer = torch.optim.LBFGS([p for n, p in model.named_parameters() if "unused" not in n], max_iter=3)
    before = []

    def closure():
        optimizer.zero_grad()
        loss = 10 * loss_of(model, 6, 0)
        loss.backward()
        before.append(gradients(model))
        clip_grad_norm_(model.parameters(), 0.5)
        return loss

    with watched(model, optimizer):
        optimizer.step(closure)
    assert len(before) > 1
    assert value(kept()[0], "grad_sq", "head.weight") == pytest.approx(squares(before[-1])["head.weight"], rel=1e-5)
    assert kept()[0].scalars["grad_norm"] == pytest.approx(total_norm(before[-1]), rel=1e-5)


def test_a_norm_that_the_user_takes_apart_from_the_clip_is_seen(kept):
    def apart(model, _):
        parameters = [p for p in model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        torch.nn.utils.clip_grads_with_norm_(parameters, 0.5, norm)

    before, record = step_clipped(apart, kept)
    assert_close(column(record, "grad_sq"), squares(before), 1e-5)
    assert record.scalars["grad_norm"] == pytest.approx(total_norm(before), rel=1e-6)
    assert record.scalars["clip_threshold"] == 0.5


def test_a_wrapper_that_others_wrapped_tells_no_later_watch(kept, monkeypatch):
    model = attention()
    first = watched(model, torch.optim.SGD(model.parameters(), lr=0.1))
    ours = clip_grad._clip_grads_with_norm_
    monkeypatch.setattr(clip_grad, "_clip_grads_with_norm_", lambda *args, **kwargs: ours(*args, **kwargs))
    first.close()
    before, record = step_clipped(lambda m, _: torch.nn.utils.clip_grad_norm_(m.parameters(), 0.5), kept)
    assert_close(column(record, "grad_sq"), squares(before), 1e-5)


def test_layer_norms_that_do_not_give_the_total_norm_are_counted(kept):
    model = attention()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer) as watch:
        for factor in (1.0, 3.0):
            loss_of(model, 6, 0).backward()
            clip_grad_norm_(model.parameters(), 0.1)
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
            optimizer.step()
            optimizer.zero_grad()
        watch.log(loss=1.0)
    assert watch.status()["norms_that_disagreed"] == 1
    assert len(kept()) == 2


def test_torch_is_left_as_it_was_found(kept):
    names = ("_get_total_norm", "_clip_grads_with_norm_", "_group_tensors_by_device_and_dtype")
    originals = [getattr(clip_grad, name) for name in names]
    scaler_step = torch.amp.GradScaler.step
    model = attention()
    first = watched(model, torch.optim.SGD(model.parameters(), lr=0.1))
    second = watched(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(getattr(clip_grad, name) is not original for name, original in zip(names, originals, strict=True))
    first.close()
    assert clip_grad._get_total_norm is not originals[0]
    second.close()
    assert [getattr(clip_grad, name) for name in names] == originals
    assert torch.amp.GradScaler.step is scaler_step
    assert kept() == []


def test_this_torch_has_every_function_that_clipping_is_seen_by():
    assert missing() is None


def said_of_clipping(kept, clip=lambda *_: None, at=(), log=lambda _: {}):
    """After how many of 104 steps the status says that clipping is not known, and whether at the end."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    said = []
    with watched(model, optimizer, every=50) as watch:
        for step in range(104):
            model(torch.ones(1, 2)).sum().backward()
            if step in at:
                clip(model.parameters())
            watch.log(**log(step))
            optimizer.step()
            optimizer.zero_grad()
            kept()
            said.append(any(reason.startswith("clipping is not known") for reason in watch.status()["not_measured"]))
    return said.count(True), said[-1]


def test_where_nothing_said_how_gradients_are_clipped_it_is_said_that_this_is_not_known(kept):
    times, last = said_of_clipping(kept)
    assert last
    assert times <= 5


@pytest.mark.parametrize(
    ("clip", "at", "log"),
    [
        (lambda p: by_name_norm(p, 1.0), {90}, lambda _: {}),
        (lambda p: by_name_value(p, 1.0), {0}, lambda _: {}),
        (None, (), lambda step: {"grad_norm": 1.5} if step == 30 else {"loss": 1.0}),
    ],
    ids=["norm", "value", "logged"],
)
def test_where_a_clip_was_seen_or_a_norm_logged_at_any_step_it_is_known(clip, at, log, kept):
    assert said_of_clipping(kept, clip, at, log) == (0, False)


def test_after_a_clip_that_comes_late_it_is_known(kept):
    assert said_of_clipping(kept, lambda p: by_name_norm(p, 1.0), {102})[1] is False


@pytest.mark.parametrize("kind", [2.0, math.inf])
def test_a_clip_of_bfloat16_gradients_is_undone_by_the_coefficient_that_torch_used(kind, kept):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(40, 60), torch.nn.Tanh(), torch.nn.Linear(60, 30)).to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with watched(model, optimizer):
        for step in range(8):
            x = torch.randn(9, 40, generator=torch.Generator().manual_seed(step)).to(torch.bfloat16)
            (37 * model(x).float().square().mean()).backward()
            gradients = {name: p.grad.double().numpy() for name, p in model.named_parameters()}
            expected.append(squares(gradients))
            clip_grad_norm_(model.parameters(), 0.3, norm_type=kind)
            optimizer.step()
            optimizer.zero_grad()
    for record, squared in zip(kept(), expected, strict=True):
        found = column(record, "grad_sq")
        assert found["0.weight"] == pytest.approx(squared["0.weight"], rel=1e-3)
        assert found["2.weight"] == pytest.approx(squared["2.weight"], rel=1e-3)
