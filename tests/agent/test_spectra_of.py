"""Spectra of weights and of updates, against the float64 singular values of what is there before and after a step."""

from __future__ import annotations

import pytest
import torch
from agent.watched_training import attention, loss_of, watched
from gradspectra_core.records import SPECTRUM_OF
from gradspectra_core.spectrum import aggregates
from torch import nn

OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.3),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def exact(matrix):
    return torch.linalg.svdvals(matrix.double().flatten(1)).numpy()


def close_to(matrix, rel=1e-4):
    return pytest.approx(aggregates(exact(matrix)), rel=rel)


def blocks(weights):
    """The matrices of `attention` by the names of their layers."""
    found = {f"{name}.weight": weights[f"{name}.weight"] for name in ("embed", "head")}
    parts = zip("qkv", weights["qkv.weight"].chunk(3), strict=True)
    return found | {f"qkv.weight[{part}]": block for part, block in parts}


CLIPS = {
    "norm": lambda parameters: nn.utils.clip_grad_norm_(parameters, 1e-2),
    "value": lambda parameters: nn.utils.clip_grad_value_(parameters, 1e-3),
}


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_they_are_of_the_weights_after_the_step_and_of_what_it_changed(kept, kind, clip):
    model = attention()
    optimizer = OPTIMIZERS[kind](model.parameters())
    seen = []
    with watched(model, optimizer, spectra=1, spectra_of=["update", "gradient", "weight"]):
        for step in range(3):
            loss_of(model, 4, step).backward()
            gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            CLIPS[clip](model.parameters())
            optimizer.step()
            after = {name: p.detach().clone() for name, p in model.named_parameters()}
            seen.append((gradient, after, {name: after[name] - before[name] for name in after}))
            optimizer.zero_grad()
    for record, (gradient, weight, update) in zip(kept(), seen, strict=True):
        found = {(record.table.names[one.layer], one.of): one.aggregates for one in record.spectra}
        assert {of for _, of in found} == set(SPECTRUM_OF)
        for of, weights in zip(SPECTRUM_OF, (gradient, weight, update), strict=True):
            for name, matrix in blocks(weights).items():
                assert found[name, of] == close_to(matrix, 1e-3 if of == "update" else 1e-4), (name, of)


def test_an_optimizer_whose_updates_are_not_known_has_no_spectra_of_them(kept):
    model = nn.Linear(6, 4, bias=False)
    optimizer = torch.optim.Adagrad(model.parameters())
    with watched(model, optimizer, spectra=1, spectra_of=SPECTRUM_OF) as watch:
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    (record,) = kept()
    assert [spectrum.of for spectrum in record.spectra] == ["gradient", "weight"]
    said = watch.status()["not_measured"]
    assert any("moments are not measured for Adagrad, and updates of a few layers" in why for why in said)


@pytest.mark.parametrize("wrong", ["weights", [], ("gradient", "bias"), None, 3, {"weight"}])
def test_what_they_may_be_of_is_named(wrong):
    model = nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"spectra_of must be one or several of gradient, weight, update, got"):
        watched(model, torch.optim.SGD(model.parameters(), lr=0.1), spectra_of=wrong)
