"""How far the weights have come from where the run started: ‖W − W₀‖² and ⟨W, W₀⟩, on a fixed sample of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gradspectra_core.records import Float64
from torch import Tensor

from gradspectra.drift_samples import BLOCK, Samples, placed_at
from gradspectra.flat import OneThread, chunk, dot_into, flat
from gradspectra.fused import CPU, FusedPass, fits
from gradspectra.inventory import Inventory, WatchedTensor
from gradspectra.readout import Readout, summed
from gradspectra.shards import local
from gradspectra.starts import Start, before, copy_of, extent, in_steps, is_of, may_be_coded, placed_on

FEWEST = 4096
"""Entries of a layer that are kept at least, if it has as many."""
STRIDES = (61, 53, 43, 37, 31, 23, 19, 17, 13, 11, 7, 5, 3)
"""One block of so many is kept, the largest that leaves FEWEST. Odd primes: no column of a matrix is left out."""
TURN = 16
"""Of the recorded steps within a budget, one in so many measures the drift, which changes slowly."""
NOTHING = 1e-4
"""A square of at most this part of what coding has lost is 0: the same sum in another order differs by less."""


@dataclass(frozen=True, slots=True)
class DriftSums:
    """Results on the devices, each (3, L), 0 for layers that lie elsewhere.

    Of the sample, with W₀ as it is kept: ‖W − W₀‖², ⟨W, W₀⟩, and what the first was at the start. scale: (L,), from the
    sample to the whole.
    """

    results: list[Tensor]
    scale: Float64

    @classmethod
    def of(cls, whole: Float64) -> DriftSums:
        """Sums over whole layers, (2, L), that are on the host."""
        return cls([torch.from_numpy(np.vstack([whole, np.zeros_like(whole[:1])]))], np.ones(whole.shape[1]))

    def on_host(self, copies: Sequence[Float64]) -> Float64:
        """‖W − W₀‖² and ⟨W, W₀⟩ of the layers, (2, L), from copies of the results; the former 0 if nothing moved."""
        square, product, lost = summed(copies)
        with np.errstate(invalid="ignore"):
            moved = square - lost
            moved[moved <= NOTHING * lost] = 0.0
            whole: Float64 = self.scale * (moved, product)
        return whole


def sample(numbers: Tensor) -> Tensor:
    """The entries of a vector (n,) that drift is measured on, as a view: all of a short one, else (blocks, BLOCK)."""
    stride = next((s for s in STRIDES if numbers.numel() >= (FEWEST + BLOCK) * s), 1)
    if stride == 1:
        return numbers
    blocks = numbers.numel() // (stride * BLOCK)
    return numbers[: blocks * stride * BLOCK].view(blocks, stride * BLOCK)[:, :BLOCK]


class Drift:
    """Keeps the weights of one inventory as they were at the start, and measures how far from there they are.

    exact: keep all of them, as they are, not a coded sample. fused: the compiled pass, where there is one. starts: what
    is known of the start, by layer name; where it does not fit, and for layers that it lacks, the weights as they are
    at `begin` count as the start.
    """

    def __init__(
        self, inventory: Inventory, exact: bool, starts: Mapping[str, Start], fused: FusedPass | None = None
    ) -> None:
        self.starts = dict(starts)
        self.exact = exact
        self.anew = False
        """Whether the start of any layer was not known at `begin`."""
        self._inventory = inventory
        self._begun = False
        self._scale = np.ones(len(inventory.table))
        self._results: dict[torch.device, Tensor] = {}
        self._fused = fused
        self._together = Samples(())
        self._extents: dict[str, Tensor] = {}
        self._asked: Readout | None = None
        """The extents of starts that lie on an accelerator and may be coded, on their way to the host."""

    @torch.no_grad()
    def begin(self) -> None:
        """Keep the weights as they are for the layers whose start is not known."""
        starts: dict[str, Start] = {}
        self.anew = False
        self._extents.clear()
        with OneThread():
            for index, now in self._samples(self._inventory.tensors):
                name = self._inventory.table.names[index]
                start = self.starts.get(name)
                if start is None or not is_of(start, now):
                    self.anew = True
                    start = copy_of(now)
                starts[name] = self._smaller(name, placed_on(start, now.device))
        self.starts = starts
        self._begun = True
        self._asked = Readout(list(self._extents.values())) if self._extents else None
        self._results.clear()
        self._prepare()

    def _smaller(self, name: str, start: Start) -> Start:
        """A start coded, where it may be; on an accelerator its extent has to come to the host first."""
        if self.exact or not isinstance(start, Tensor) or not may_be_coded(start):
            return start
        found = extent(start)
        if start.device.type == "cpu":
            return in_steps(start, *found.tolist())
        self._extents[name] = found
        return start

    def _prepare(self) -> None:
        """Get ready to measure; code what lies on an accelerator as soon as the extents have come."""
        if self._asked is not None and self._asked.ready():
            extents = self._asked.arrays()
            self._asked = None
            for name, found in self._extents.items():
                start = self.starts[name]
                assert isinstance(start, Tensor)
                self.starts[name] = in_steps(start, *extents[id(found)].tolist())
            self._extents.clear()
        for index, name in enumerate(self._inventory.table.names):
            start = self.starts[name]
            if not isinstance(start, Tensor):
                self._on(start["lost"].device)[2, index] = start["lost"]
        tensors = self._inventory.tensors
        self._together = Samples([(tensor, own) for tensor in tensors if (own := self._in_order(tensor))])

    def _in_order(self, tensor: WatchedTensor) -> list[tuple[Tensor, Start]]:
        """Now and start of each of its layers where one pass over all can read both, else none."""
        names = self._inventory.table.names
        pairs = [(now, self.starts[names[index]]) for index, now in self._samples((tensor,))]
        readable = fits(tensor) and all(placed_at(start, now)[0] for now, start in pairs)
        return pairs if readable else []

    @torch.no_grad()
    def measure(self) -> DriftSums:
        """Measure the distances; raises RuntimeError before `begin`. The results stay until they are measured again."""
        if not self._begun:
            raise RuntimeError("the weights at the start were not kept")
        if self._asked is not None:
            self._prepare()
        compiled = None if self._fused is None else self._fused.compiled
        done = self._together.measure(compiled)
        if done:
            with np.errstate(over="ignore"):
                self._on(CPU).numpy()[:2, self._together.place] = self._together.sums.T
        for index, now in self._samples(tensor for tensor in self._inventory.tensors if tensor.first not in done):
            results = self._on(now.device)
            self._sums(results[0, index], results[1, index], now, self.starts[self._inventory.table.names[index]])
        return DriftSums(list(self._results.values()), self._scale)

    @staticmethod
    def _sums(square: Tensor, product: Tensor, now: Tensor, start: Start) -> None:
        most, wide = chunk(now.device), torch.promote_types(now.dtype, torch.float32)
        rows = most if now.dim() == 1 else most // BLOCK
        if len(now) <= rows:
            then = before(start, 0, len(now), wide)
            moved, then = (now - then).view(-1), then.view(-1)
            dot_into(square, moved, moved)
            dot_into(product, then, moved + then)
            return
        square.zero_()
        product.zero_()
        for first in range(0, len(now), rows):
            then = before(start, first, min(first + rows, len(now)), wide)
            moved, then = (now[first : first + rows] - then).view(-1), then.view(-1)
            square.add_(torch.dot(moved, moved))
            product.add_(torch.dot(then, moved.add_(then)))

    def _on(self, device: torch.device) -> Tensor:
        """The results on a device."""
        if device not in self._results:
            self._results[device] = torch.zeros(3, len(self._scale), dtype=torch.float32, device=device)
        return self._results[device]

    def _samples(self, tensors: Iterable[WatchedTensor]) -> Iterator[tuple[int, Tensor]]:
        """Index of each layer of these tensors, and the entries of its weights as they are now."""
        for tensor in tensors:
            numbers = flat(local(tensor.parameter).detach(), tensor.axis)
            for index, (start, stop) in enumerate(tensor.pieces, tensor.first):
                piece = numbers[start:stop]
                chosen = piece if self.exact else sample(piece)
                self._scale[index] = piece.numel() / chosen.numel() if chosen.numel() else 1.0
                yield index, chosen
