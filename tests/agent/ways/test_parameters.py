"""Parameters that are adapters, tied, frozen, unfrozen, added, or get sparse gradients."""

from __future__ import annotations

import pytest
import torch
from agent.watched_training import attention, column, loss_of, watched
from agent.ways.plain import Plain
from agent.ways.way import way
from torch import nn


class Adapter(nn.Module):
    """A frozen linear layer and a low-rank product added to it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(0.1 * torch.randn(rank, base.in_features))
        self.lora_B = nn.Parameter(0.1 * torch.randn(base.out_features, rank))

    def forward(self, x):
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T


def adapted():
    model = attention().requires_grad_(False)
    model.qkv, model.head = Adapter(model.qkv, 2), Adapter(model.head, 2)
    return model


def train(model, optimizer, plain, steps, expected, parts=2):
    for step in range(steps):
        losses = [lambda m, s=2 * step + j: loss_of(m, 4, s) / parts for j in range(parts)]
        expected.append(plain.step(model, *losses))
        for loss in losses:
            loss(model).backward()
        optimizer.step()
        expected[-1].after = plain.weights(model)
        optimizer.zero_grad()


@way("LoRA adapters")
def test_adapters_are_measured_and_what_is_frozen_is_not(kept, the_way):
    model = adapted()
    plain, expected = Plain(model), []
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.03)
    with watched(model, optimizer):
        train(model, optimizer, plain, 3, expected)
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        assert set(record.table.names) == {f"{at}.lora_{side}" for at in ("qkv", "head") for side in "AB"}
        the_way.check(record, step, parts=index > 0)


@way("LoRA adapters")
@pytest.mark.slow
def test_adapters_of_peft(kept, the_way):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'gradspectra[integrations]'")
    model = peft.get_peft_model(
        attention(), peft.LoraConfig(r=2, target_modules=["head"], init_lora_weights="gaussian")
    )
    plain, expected = Plain(model), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    with watched(model, optimizer):
        train(model, optimizer, plain, 3, expected)
    assert len(kept()[0].table) == 2
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, parts=index > 0)


class Tied(nn.Module):
    """Output weights that are the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens)))


@way("Tied weights")
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_tied_weights_are_one_layer(kind, kept, the_way):
    model = Tied()
    plain, expected = Plain(model), []
    optimizer = kind(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        train(model, optimizer, plain, 3, expected)
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        assert record.table.names == ("embed.weight", "head.bias")
        the_way.check(record, step, parts=index > 0)


@way("Parameters frozen, unfrozen or added mid-run")
def test_what_is_frozen_leaves_and_what_is_unfrozen_or_added_comes(kept, the_way):
    model = attention()
    model.head.requires_grad_(False)
    plain, expected, optimizer = Plain(model), [], torch.optim.AdamW(model.parameters(), lr=0.03)
    with watched(model, optimizer):
        train(model, optimizer, plain, 2, expected)
        model.head.requires_grad_(True)
        model.norm.requires_grad_(False)
        train(model, optimizer, plain, 3, expected)
        model.embed = nn.Sequential(model.embed, added := nn.Linear(12, 12))
        plain = Plain(model)
        optimizer.add_param_group({"params": added.parameters()})
        train(model, optimizer, plain, 3, expected)
    assert [record.step for record in kept()] == list(range(1, 9))
    for index in (0, 1, 3, 4, 6, 7):  # the first step after a change still has the layers of before
        assert set(kept()[index].table.names) == set(expected[index].gradient)
        the_way.check(kept()[index], expected[index], parts=index > 0)
    assert "head.weight" not in kept()[1].table.names
    assert "head.weight" in kept()[3].table.names
    assert "norm.weight" not in kept()[3].table.names
    assert "embed.1.weight" in kept()[6].table.names


@way("Parameters frozen, unfrozen or added mid-run")
@pytest.mark.parametrize("turn", [1, 2])
def test_adapters_that_train_in_turn_are_all_measured_from_the_second_turn_on(turn, kept, the_way):
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("a", "b", "c")})
    optimizer, expected = torch.optim.AdamW(model.parameters(), lr=0.03), []
    with watched(model, optimizer) as watch:
        for step in range(9 * turn):
            own = model["abc"[step // turn % 3]]
            for layer in model.values():
                layer.requires_grad_(layer is own)
            own(torch.randn(8, 4)).square().mean().backward()
            watch.log(loss=float(step))
            gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            expected.append({name: float(g.double().square().sum()) for name, g in gradient.items()})
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
            optimizer.zero_grad()
    assert [record.scalars["loss"] for record in kept()] == list(range(9 * turn))
    assert {record.counts["parts"] for record in kept()} == {1}
    for record, squares in list(zip(kept(), expected, strict=True))[3 * turn + 1 :]:
        found = column(record, "grad_sq")
        assert {name: square for name, square in found.items() if square is not None} == pytest.approx(squares, 1e-5)
        assert len(found) == 6
        assert record.scalars["grad_norm"] == pytest.approx(sum(squares.values()) ** 0.5, rel=1e-5)
    assert the_way.layers


@way("Sparse embedding gradients", updates=False, second=False)
def test_sparse_gradients_of_an_embedding(kept, the_way):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 12, sparse=True), nn.Linear(12, 5))
    model[1].requires_grad_(False)
    plain, expected, optimizer = Plain(model), [], torch.optim.SGD(model.parameters(), lr=0.3)
    with watched(model, optimizer, spectra=1):
        train(model, optimizer, plain, 3, expected)
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, parts=index > 0)


def test_a_layer_frozen_between_gradients_given_by_hand_leaves_the_rest(kept, caplog):
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer):
        for step in range(6):
            if step == 3:
                model[0].weight.requires_grad_(False)
                model[0].weight.grad = None
            for layer in model[step >= 3 :]:
                layer.weight.grad = torch.ones_like(layer.weight)
            optimizer.step()
    names = [record.table.names for record in kept()]
    assert (names[0], names[-1]) == (("0.weight", "1.weight"), ("1.weight",))
    assert not caplog.records
