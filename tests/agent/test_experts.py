"""Experts in one tensor: each is a layer, with its own statistics and spectra."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from agent.experts import EXPERTS, matrices, mixture, split
from agent.watched_training import assert_close, column, loss_of, value, watched
from gradspectra import chosen_blocks as chosen_blocks_module
from gradspectra_core.records import SPECTRUM_OF
from gradspectra_core.spectrum import aggregates
from torch import nn
from torch.nn.utils import clip_grad_norm_

TENSORS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
OF_EXPERTS = [f"{name}[{expert}]" for name in TENSORS for expert in range(EXPERTS)]
IDLE = {f"{name}[{EXPERTS - 1}]" for name in TENSORS}

OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.3),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def clones(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def trained(model, optimizer, clip=None, parts=1, **options):
    """Three steps: of each the gradients before clipping, the weights before and after, and squares of the parts."""
    seen = []
    with watched(model, optimizer, **options) as watch:
        for step in range(3):
            before, total, squares = clones(model), None, dict.fromkeys(split(clones(model)), 0.0)
            for part in range(parts):
                (loss_of(model, 4, parts * step + part) / parts).backward()
                now = {name: p.grad.clone() for name, p in model.named_parameters()}
                own = now if total is None else {name: g - total[name] for name, g in now.items()}
                squares = {
                    name: s + parts * float(split(own)[name].double().square().sum()) for name, s in squares.items()
                }
                total = now
            if clip is not None:
                clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            seen.append((total, before, clones(model), squares))
            optimizer.zero_grad()
    return seen, watch


def numbers(tensors, number):
    return {name: float(number(own.double())) for name, own in split(tensors).items()}


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("clip", [None, 1e-2])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_each_has_the_statistics_of_its_own_part(kind, clip, kept):
    model = mixture()
    seen, watch = trained(model, OPTIMIZERS[kind](model.parameters()), clip, parts=2)
    for record, (gradient, before, after, parts) in zip(kept(), seen, strict=True):
        assert set(OF_EXPERTS) < set(record.table.names)
        assert_close(column(record, "grad_sq"), numbers(gradient, lambda g: g.square().sum()), 1e-5)
        assert_close(column(record, "grad_max"), numbers(gradient, lambda g: g.abs().max()), 1e-6)
        assert_close(column(record, "weight_sq"), numbers(after, lambda w: w.square().sum()), 1e-5)
        moved = numbers({name: after[name] - before[name] for name in after}, lambda u: u.square().sum())
        assert_close(column(record, "update_sq"), moved, 1e-2 if kind == "adamw" else 1e-3, 1e-12)
        l1 = {name: value(record, "grad_l1", name) for name in OF_EXPERTS}
        exact = numbers(gradient, lambda g: g.abs().sum())
        assert l1 == pytest.approx({name: exact[name] for name in OF_EXPERTS}, rel=1e-5)
        if record.step > 1:
            assert_close(column(record, "part_sq"), parts, 1e-4, 1e-12)
    assert watch.status()["not_measured"] == []
    assert watch.status()["norms_that_disagreed"] == 0


@pytest.mark.usefixtures("either_way")
def test_one_that_gets_no_token_has_a_gradient_of_zero_and_no_spectrum_of_it(kept):
    model = mixture()
    trained(model, OPTIMIZERS["adamw"](model.parameters()), spectra=1, spectra_of=["gradient", "weight"])
    for record in kept():
        assert {value(record, "grad_max", name) for name in IDLE} == {0.0}
        zero = {name for name in OF_EXPERTS if value(record, "grad_zero_rows", name)}
        assert zero == IDLE
        names = record.table.names
        assert not IDLE & {names[spectrum.layer] for spectrum in record.spectra if spectrum.of == "gradient"}
        assert {names[spectrum.layer] for spectrum in record.spectra if spectrum.of == "weight"} >= IDLE


def spectra_close(record, exact, rel):
    """Whether a record has the spectra of these matrices, by what they are of and the names of their layers."""
    found = {(spectrum.of, record.table.names[spectrum.layer]): spectrum for spectrum in record.spectra}
    wanted = {(of, name): own for of, all_of in exact.items() for name, own in matrices(all_of).items() if own.any()}
    assert found.keys() == wanted.keys()
    for (of, name), matrix in wanted.items():
        spectrum = found[of, name]
        assert (spectrum.rows, spectrum.columns) == tuple(matrix.shape)
        sigma = torch.linalg.svdvals(matrix).numpy()
        ranks = slice(0, 5)
        assert spectrum.aggregates[ranks] == pytest.approx(aggregates(sigma)[ranks], rel=rel[of]), (of, name)
        assert spectrum.values[:3] == pytest.approx(sigma[:3], rel=rel[of])


FINE = {"gradient": 1e-5, "weight": 1e-5, "update": 1e-2}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_spectra_of_gradient_weights_and_update_are_each_experts_own(kind, kept):
    model = mixture()
    options = {"spectra": 1, "spectra_of": SPECTRUM_OF}
    seen, watch = trained(model, OPTIMIZERS[kind](model.parameters()), 1e-2, parts=2, **options)
    for record, (gradient, before, after, _) in zip(kept(), seen, strict=True):
        update = {name: after[name] - before[name] for name in after}
        spectra_close(record, {"gradient": gradient, "weight": after, "update": update}, FINE)
    assert watch.status()["not_measured"] == []


def test_experts_in_bfloat16(kept):
    model = mixture().bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen, _ = trained(model, optimizer, spectra=1, spectra_of=["gradient", "weight"])
    for record, (gradient, _, after, _) in zip(kept(), seen, strict=True):
        assert_close(column(record, "grad_sq"), numbers(gradient, lambda g: g.square().sum()), 1e-4)
        spectra_close(record, {"gradient": gradient, "weight": after}, {"gradient": 1e-4, "weight": 1e-4})


class Folded(nn.Module):
    """Experts of a module whose own name does not tell of them."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 4, 6))

    def forward(self, x):
        return torch.einsum("eoi,bi->bo", self.w, x)


def one_step(model, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, spectra=1, **options) as watch:
        model(torch.randn(8, 6)).square().mean().backward()
        optimizer.step()
    return watch.status()["not_measured"]


def test_a_function_of_the_user_may_name_experts(kept):
    model = Folded()
    given = [(f"[{expert}]", 0, expert, expert + 1) for expert in range(3)]
    assert one_step(model, layers=lambda _: given) == []
    (record,) = kept()
    assert record.table.names == ("w[0]", "w[1]", "w[2]")
    for spectrum, gradient in zip(record.spectra, model.w.grad, strict=True):
        assert spectrum.aggregates == pytest.approx(aggregates(torch.linalg.svdvals(gradient).numpy()), rel=1e-4)


def test_a_function_of_the_user_may_keep_experts_together(kept):
    model = nn.ModuleDict({"experts": Folded()})
    model.forward = model["experts"].forward
    said = one_step(model, layers=lambda _: [("[all]", 0, 0, 3)])
    (record,) = kept()
    assert record.table.names == ("experts.w[all]",)
    assert said == ["no spectrum of experts.w[all]: it is not one matrix"]


@pytest.fixture
def few(monkeypatch):
    """The names of experts may give a run no more than 18 layers; `Mixture` then has 19."""
    monkeypatch.setattr(chosen_blocks_module, "MOST_WITH_EXPERTS", 18)


@pytest.mark.usefixtures("few")
def test_too_many_experts_stay_together_and_the_status_says_so(kept, caplog):
    model = mixture()
    _, watch = trained(model, OPTIMIZERS["sgd"](model.parameters()))
    names = kept()[0].table.names
    assert set(TENSORS) < set(names)
    assert "c_attn.weight[q]" in names
    (said,) = watch.status()["not_measured"][:1]
    assert said == (
        "experts of 2 tensors are not told apart, and have no spectra of their own: with a layer for each the run "
        "would have 19 layers, more than 18; choose fewer tensors, or name their experts, by layers="
    )
    assert f"gradspectra: {said}" in caplog.messages


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("chosen", [r"experts|embed", lambda name: name != "embed.weight" and "conv" not in name])
def test_experts_are_told_apart_where_what_is_chosen_leaves_room(chosen, kept):
    model = mixture()
    trained(model, OPTIMIZERS["sgd"](model.parameters()), layers=chosen)
    assert set(OF_EXPERTS) < set(kept()[0].table.names)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("tensors", [3, 4])
def test_many_that_stay_together_are_said_in_one_sentence(tensors, kept):
    model = nn.ParameterDict({f"experts_{n}": torch.randn(9, 3, 4) for n in range(tensors)})
    with watched(model, torch.optim.SGD(model.parameters(), lr=0.1), spectra=1) as watch:
        said = watch.status()["not_measured"]
    assert kept() == []
    each = [f"no spectrum of experts_{n}: it is not one matrix" for n in range(3)]
    more = ["no spectrum of experts_0 and 3 more: they are not one matrix each"]
    assert [reason for reason in said if "no spectrum of" in reason] == (each if tensors == 3 else more)


def test_a_run_may_have_just_as_many_layers_with_its_experts(kept, monkeypatch):
    monkeypatch.setattr(chosen_blocks_module, "MOST_WITH_EXPERTS", 19)
    model = mixture()
    trained(model, OPTIMIZERS["sgd"](model.parameters()))
    assert len(kept()[0].table) == 19


@pytest.mark.usefixtures("few")
def test_experts_that_the_user_names_are_told_apart_however_many_they_are(kept):
    model = mixture()
    given = [(f"[{expert}]", 0, expert, expert + 1) for expert in range(EXPERTS)]
    _, watch = trained(
        model, OPTIMIZERS["sgd"](model.parameters()), layers=lambda name: given if name in TENSORS else True
    )
    assert set(OF_EXPERTS) < set(kept()[0].table.names)
    assert watch.status()["not_measured"] == []


def test_a_tensor_of_one_dimension_of_one_before_a_matrix_has_the_matrixs_spectrum(kept):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.pos_embed = nn.Parameter(torch.randn(1, 5, 6))

        def forward(self, x):
            return (x[:, None] + self.pos_embed).square()

    model = Positions()
    assert one_step(model) == []
    (spectrum,) = kept()[0].spectra
    assert (spectrum.rows, spectrum.columns) == (5, 6)
    sigma = np.linalg.svd(model.pos_embed.grad[0].double().numpy(), compute_uv=False)
    assert spectrum.aggregates == pytest.approx(aggregates(sigma), rel=1e-5)


def test_convolutions_are_matrices_of_their_outputs_whatever_experts_lie_around_them(kept):
    class Moe(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleDict({"conv": nn.Conv1d(6, 4, 3, bias=False)})

        def forward(self, x):
            return self.experts["conv"](x[:, :, None].expand(-1, -1, 3))

    assert one_step(Moe()) == []
    (record,) = kept()
    assert record.table.names == ("experts.conv.weight",)
    assert [(spectrum.rows, spectrum.columns) for spectrum in record.spectra] == [(4, 18)]
