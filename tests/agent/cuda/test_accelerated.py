"""The arithmetic of the first tier on an accelerator against plain float64, on whatever device."""

from __future__ import annotations

import math

import gradspectra.accelerated as accelerated
import pytest
import torch
from agent.cuda.simulated import Simulated
from agent.watched_training import attention, loss_of
from gradspectra.inventory import take_inventory
from gradspectra.measure import SQUARE, FirstTier

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("chunk", [1, 4, 1 << 24])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_what_is_not_finite_is_counted_and_the_rest_is_measured(chunk, dtype, monkeypatch):
    monkeypatch.setattr(accelerated, "ACCELERATOR_CHUNK", chunk)
    matrix = torch.tensor([[3.0, -4.0, 0.5], [NAN, 2.0, -INF], [INF, NAN, NAN]], dtype=dtype)
    lost, square, low, high = accelerated.finite_rows(matrix).tolist()
    assert lost == [0, 2, 3]
    assert square == pytest.approx([25.25, 4.0, 0.0])
    assert low == [-4.0, 0.0, 0.0]
    assert high == [3.0, 2.0, 0.0]


def test_sums_of_squares_are_taken_in_float32_or_wider_and_in_order():
    pieces = [
        torch.full((5000,), 0.01).bfloat16(),
        torch.tensor([3.0, 4.0]),
        torch.tensor([2.0]).double(),
        torch.zeros(0),
    ]
    exact = [float(piece.double().square().sum()) for piece in pieces]
    assert accelerated.squares(pieces).tolist() == pytest.approx(exact, rel=1e-5)
    assert torch.isnan(accelerated.squares([torch.tensor([NAN])])).all()
    assert torch.isinf(accelerated.squares([torch.full((2,), 1e20)])).all()


def test_what_all_ranks_have_found_takes_the_place_of_what_this_one_has():
    with Simulated() as device:
        model = attention()
        loss_of(model, 4, 0).backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        device.put(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        tier = FirstTier(take_inventory({"": model}, [optimizer], lambda _: True))
        for name, p in model.named_parameters():
            p.grad = None if gradients[name] is None else gradients[name].to("meta")
        model.head.bias.grad[0] = NAN
        tier.take(tier.inventory.tensors, optimizer)
        whole = tier.share().numpy()
        column = tier.inventory.table.names.index("head.bias")
        assert whole[3, column] == 1
        whole[3, column], whole[0, column] = 2, 7.0
        tier.adopt(whole)
        marks = tier.finish()
        rows = tier.rows([results.cpu().double().numpy() for results in tier.results()], marks)
    assert rows[SQUARE, column] == 7.0
    assert {layer: (left.nonfinite, left.square) for layer, left in marks.repaired.items()} == {column: (2, 7.0)}
