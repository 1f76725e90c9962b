"""Backward passes of an unusual kind: recomputed, taken by autograd.grad, or of two models that play a game."""

from __future__ import annotations

import pytest
import torch
from agent.watched_training import column, watched
from agent.ways.plain import Plain
from agent.ways.way import Way, way
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Deep(nn.Module):
    """Three blocks, each recomputed in the backward pass if `reentrant` is not None."""

    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(6, 1)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        scores: Tensor = self.head(x)
        return scores


def inputs(seed: int) -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))


def checkpointed(reentrant: bool, kept, the_way: Way) -> None:
    model = Deep(reentrant)
    plain, optimizer = Plain(model), torch.optim.AdamW(model.parameters(), lr=0.03)
    plain.twin.reentrant = None
    expected = []
    with watched(model, optimizer):
        for step in range(3):
            xs = [inputs(2 * step + j).requires_grad_() for j in range(2)]
            expected.append(plain.step(model, *[lambda m, x=x: m(x.to(m.head.weight)).square().mean() / 2 for x in xs]))
            for x in xs:
                (model(x).square().mean() / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
            expected[-1].after = plain.weights(model)
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, parts=the_way.parts and index > 0)
        assert record.counts["parts"] == 2


@way("Gradient checkpointing, not reentrant")
def test_recomputed_blocks_are_one_part(kept, the_way):
    checkpointed(False, kept, the_way)


@way("Gradient checkpointing, reentrant")
def test_blocks_recomputed_by_a_backward_pass_of_their_own_are_one_part(kept, the_way):
    checkpointed(True, kept, the_way)


@way("autograd.grad beside the backward pass (gradient penalty)")
def test_a_gradient_penalty_is_no_part_of_its_own(kept, the_way):
    model = Deep(None)
    plain, optimizer = Plain(model), torch.optim.AdamW(model.parameters(), lr=0.03)

    def penalised(m: nn.Module, seed: int) -> Tensor:
        x = inputs(seed).to(m.head.weight).requires_grad_()
        (slope,) = torch.autograd.grad(m(x).sum(), x, create_graph=True)
        return (m(x).square().mean() + (slope.norm(dim=1) - 1).square().mean()) / 2

    expected = []
    with watched(model, optimizer):
        for step in range(3):
            losses = [lambda m, s=2 * step + j: penalised(m, s) for j in range(2)]
            expected.append(plain.beside(model, optimizer, *losses))
    assert [record.counts["parts"] for record in kept()] == [2, 2, 2]
    for index, (record, step) in enumerate(zip(kept(), expected, strict=True)):
        the_way.check(record, step, parts=index > 0)


@way("Two models that train in turn (GAN)", parts=False)
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "critic frozen meanwhile"])
@pytest.mark.parametrize("to_none", [True, False])
def test_passes_of_two_models_in_turn_are_no_parts_of_one_batch(to_none, frozen, kept, the_way):
    models = {"generator": Deep(None), "critic": Deep(None)}
    models["critic"].head = nn.Linear(6, 1)
    models["generator"].head = nn.Linear(6, 6)
    both = nn.ModuleDict(models)
    plain = Plain(both)
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=0.03) for name, model in models.items()}

    def critic_loss(m: nn.Module, seed: int) -> Tensor:
        x = inputs(seed).to(m["critic"].head.weight)
        real, made = m["critic"](x).mean(), m["critic"](m["generator"](x).detach()).mean()
        return made - real

    def generator_loss(m: nn.Module, seed: int) -> Tensor:
        return -m["critic"](m["generator"](inputs(seed).to(m["critic"].head.weight))).mean()

    expected = []
    with watched(models, list(optimizers.values())) as watch:
        for step in range(4):
            of = {}
            for name, loss in (("critic", critic_loss), ("generator", generator_loss)):
                models["critic"].requires_grad_(not frozen or name == "critic")
                of[name] = plain.step(both, lambda m, s=step, loss=loss: loss(m, s))
                optimizers[name].zero_grad(set_to_none=to_none)
                loss(both, step).backward()
                optimizers[name].step()
                of[name].after = plain.weights(both)
            watch.log(loss=1.0)
            expected.append(of)
    assert [record.step for record in kept()] == [1, 2, 3, 4]
    for record, of in zip(kept(), expected, strict=True):
        for name, step in of.items():
            squares = {layer: s for layer, s in step.grad_sq.items() if layer.startswith(name)}
            moved = {layer: s for layer, s in step.update_sq.items() if layer.startswith(name)}
            assert {n: s for n, s in column(record, "grad_sq").items() if n in squares} == pytest.approx(squares, 1e-4)
            assert {n: s for n, s in column(record, "update_sq").items() if n in moved} == pytest.approx(moved, 2e-3)
        assert set(column(record, "part_sq").values()) == {None}
        assert "noise_w" not in record.scalars
    assert not the_way.parts
