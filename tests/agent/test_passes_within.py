"""Passes that come to trained parameters by passes within them alone: of blocks that are checkpointed reentrantly."""

from __future__ import annotations

import pytest
import torch
from agent.watched_training import column, watched
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("either_way")


class Adapted(nn.Module):
    """Blocks that are computed again in the backward pass, between an embedding and a head.

    frozen: only the blocks are trained, as with adapters. Else the head's weight is that of the embedding, to which a
    pass comes last.
    """

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(9, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(6, 9, bias=False)
        self.frozen = frozen
        if frozen:
            self.embed.requires_grad_(False)
            self.head.requires_grad_(False)
        else:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x.requires_grad_() if self.frozen else x
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=True)
        scores: Tensor = self.head(x)
        return scores


def backward(model, seed, parts, call=lambda model, tokens: model(tokens)):
    """One part's backward pass; gives what it brought to each parameter, in float64."""
    before = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    tokens = torch.randint(0, 9, (4, 5), generator=torch.Generator().manual_seed(seed))
    (nn.functional.cross_entropy(call(model, tokens).flatten(0, 1), tokens.flatten()) / parts).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: (p.grad - before[name]).double() for name, p in trained.items()}


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("dropped", [False, True])
def test_what_is_logged_and_measured_is_that_of_its_own_step(frozen, parts, dropped, kept):
    model = Adapted(frozen)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    expected = []
    with watched(model, optimizer) as watch:
        for step in range(5):
            if dropped and step % 2:
                backward(model, 99, parts)
                optimizer.zero_grad()
            brought = []
            for part in range(parts):
                brought.append(backward(model, 10 * step + part, parts))
                watch.log(loss=10.0 * step + part, examples=4)
            expected.append({name: parts * sum(own[name].square().sum() for own in brought) for name in brought[0]})
            optimizer.step()
            optimizer.zero_grad()
    records = kept()
    assert [record.scalars["loss"] for record in records] == [10 * step + (parts - 1) / 2 for step in range(5)]
    assert [record.counts["examples"] for record in records] == [4 * parts] * 5
    assert [record.counts.get("parts") for record in records[2:]] == [parts] * 3
    assert {records[0].counts.get("parts"), records[1].counts.get("parts")} <= {None, parts}
    for index, (record, squared) in enumerate(zip(records, expected, strict=True)):
        found = column(record, "part_sq")
        if parts > 1 and (index >= 2 or set(found.values()) != {None}):
            assert found == pytest.approx({name: float(square) for name, square in squared.items()}, rel=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_of_a_model_that_is_not_called_itself_there_are_no_part_squares_rather_than_wrong_ones(frozen, kept):
    model = Adapted(frozen)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with watched(model, optimizer) as watch:
        for step in range(4):
            for part in range(3 + step % 2):
                backward(model, 10 * step + part, 3, lambda model, tokens: model.forward(tokens))
                watch.log(loss=float(step))
                if part == 0 and step % 2:
                    optimizer.zero_grad()
            optimizer.step()
            optimizer.zero_grad()
    assert [record.scalars["loss"] for record in kept()] == [0.0, 1.0, 2.0, 3.0]
    for record in kept():
        assert set(column(record, "part_sq").values()) == {None}
        assert record.counts.get("parts") != 1


def test_a_pass_is_seen_whichever_output_the_loss_is_made_of(kept):
    class Several(Adapted):
        def forward(self, tokens):
            scores = super().forward(tokens)
            return {"loss": scores.sum(), "scores": scores}

    model = Several(frozen=True)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with watched(model, optimizer):
        for step in range(4):
            for part in range(2):
                backward(model, 10 * step + part, 2, lambda model, tokens: model(tokens)["scores"])
            optimizer.step()
            optimizer.zero_grad()
    assert [record.counts.get("parts") for record in kept()] == [None, 2, 2, 2]
