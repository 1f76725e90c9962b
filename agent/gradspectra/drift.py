"""How far the weights have come from where the run started: ‖W − W₀‖² and ⟨W, W₀⟩, on a fixed sample of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from gradspectra_core.records import Float64
from torch import Tensor

from gradspectra.flat import CHUNK, dot_into, flat
from gradspectra.inventory import Inventory
from gradspectra.shards import local

BLOCK = 16
"""Entries that are kept together: a cache line in float32, so that a sample reads little more than itself."""
FEWEST = 4096
"""Entries of a layer that are kept at least, if it has as many."""
STRIDES = (61, 53, 43, 37, 31, 23, 19, 17, 13, 11, 7, 5, 3)
"""One block of so many is kept, the largest that leaves FEWEST. Odd primes: no column of a matrix is left out."""
TURN = 16
"""Of the recorded steps within a budget, one in so many measures the drift, which changes slowly."""


@dataclass(frozen=True, slots=True)
class DriftSums:
    """Results on the devices, each (2, L): ‖W − W₀‖² and ⟨W, W₀⟩ of the sample, 0 for layers that lie elsewhere.

    scale: (L,), from the sample to the whole.
    """

    results: list[Tensor]
    scale: Float64


def sample(numbers: Tensor) -> Tensor:
    """The entries of a vector (n,) that drift is measured on, as a view: all of a short one, else (blocks, BLOCK)."""
    stride = next((s for s in STRIDES if numbers.numel() >= (FEWEST + BLOCK) * s), 1)
    if stride == 1:
        return numbers
    blocks = numbers.numel() // (stride * BLOCK)
    return numbers[: blocks * stride * BLOCK].view(blocks, stride * BLOCK)[:, :BLOCK]


class Drift:
    """Keeps the weights of one inventory as they were at the start, and measures how far from there they are.

    exact: keep all of them, not a sample. starts: what is known of the start, by layer name; where it does not fit, and
    for layers that it lacks, the weights as they are at `begin` count as the start.
    """

    def __init__(self, inventory: Inventory, exact: bool, starts: Mapping[str, Tensor]) -> None:
        self.starts = dict(starts)
        self.exact = exact
        self.anew = False
        """Whether the start of any layer was not known at `begin`."""
        self._inventory = inventory
        self._begun = False
        self._scale = np.ones(len(inventory.table))
        self._results: dict[torch.device, Tensor] = {}

    @torch.no_grad()
    def begin(self) -> None:
        """Keep the weights as they are, in float32 or wider, for the layers whose start is not known."""
        starts = {}
        self.anew = False
        for index, now in self._samples():
            name = self._inventory.table.names[index]
            start = self.starts.get(name)
            if start is None or start.shape != now.shape:
                self.anew = True
                start = now.to(torch.promote_types(now.dtype, torch.float32), copy=True)
            starts[name] = start.to(now.device)
        self.starts = starts
        self._begun = True

    @torch.no_grad()
    def measure(self) -> DriftSums:
        """Measure the distances; raises RuntimeError before `begin`. The results stay until they are measured again."""
        if not self._begun:
            raise RuntimeError("the weights at the start were not kept")
        for index, now in self._samples():
            results = self._results.get(now.device)
            if results is None:
                results = self._results[now.device] = torch.zeros(2, len(self._scale), device=now.device)
            self._sums(results[0, index], results[1, index], now, self.starts[self._inventory.table.names[index]])
        return DriftSums(list(self._results.values()), self._scale)

    @staticmethod
    def _sums(square: Tensor, product: Tensor, now: Tensor, start: Tensor) -> None:
        rows = CHUNK if now.dim() == 1 else CHUNK // BLOCK
        if len(now) <= rows:
            moved, before = (now - start).view(-1), start.view(-1)
            dot_into(square, moved, moved)
            dot_into(product, before, moved + before)
            return
        square.zero_()
        product.zero_()
        for first in range(0, len(now), rows):
            before = start[first : first + rows].view(-1)
            moved = (now[first : first + rows] - start[first : first + rows]).view(-1)
            square.add_(torch.dot(moved, moved))
            product.add_(torch.dot(before, moved.add_(before)))

    def _samples(self) -> Iterator[tuple[int, Tensor]]:
        """Index of each layer, and the entries of its weights as they are now."""
        for tensor in self._inventory.tensors:
            numbers = flat(local(tensor.parameter).detach(), tensor.axis)
            for index, (start, stop) in enumerate(tensor.pieces, tensor.first):
                piece = numbers[start:stop]
                chosen = piece if self.exact else sample(piece)
                self._scale[index] = piece.numel() / chosen.numel() if chosen.numel() else 1.0
                yield index, chosen
