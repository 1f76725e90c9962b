"""Spectra of low-rank adapters: their weights are seen as the product that they add, against its float64 SVD."""

from __future__ import annotations

import pytest
import torch
from agent.watched_training import watched
from gradspectra_core.spectrum import aggregates
from torch import nn


class Adapter(nn.Module):
    """What an adapter adds to a layer, with peft's names where they are modules."""

    def __init__(self, modules: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        if modules:
            self.lora_A = nn.ModuleDict({"default": nn.Linear(9, 3, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(3, 7, bias=False)})
        else:
            self.lora_A, self.lora_B = nn.Parameter(torch.randn(3, 9)), nn.Parameter(torch.randn(7, 3))

    def factors(self):
        return [p for _, p in sorted(self.named_parameters())]

    def forward(self, x):
        right, left = self.factors()
        return x @ right.T @ left.T


@pytest.mark.parametrize("modules", [True, False])
def test_the_spectrum_of_an_adapters_weights_is_that_of_its_product(kept, modules):
    model = Adapter(modules)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watched(model, optimizer, spectra=1, spectra_of=["gradient", "weight"]):
        model(torch.randn(5, 9)).square().mean().backward()
        gradients = [p.grad.clone() for p in model.factors()]
        optimizer.step()
    (record,) = kept()
    found = {(record.table.names[one.layer].split(".")[0], one.of): one for one in record.spectra}
    assert set(found) == {("lora_A", "gradient"), ("lora_B", "gradient"), ("lora_B", "weight")}
    for name, gradient in zip(("lora_A", "lora_B"), gradients, strict=True):
        expected = torch.linalg.svdvals(gradient.double()).numpy()
        assert found[name, "gradient"].aggregates == pytest.approx(aggregates(expected), rel=1e-5)
    right, left = (p.detach().double() for p in model.factors())
    product, expected = found["lora_B", "weight"], torch.linalg.svdvals(left @ right)[:3].numpy()
    assert (product.rows, product.columns, len(product.values)) == (7, 9, 3)
    assert product.values == pytest.approx(expected, rel=1e-6)
    assert product.aggregates == pytest.approx(aggregates(expected), rel=1e-9)
