"""How far the weights have come from where the run started: ‖W − W₀‖² and ⟨W, W₀⟩, on a fixed sample of a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gradspectra_core.records import Float32, Float64
from torch import Tensor

from gradspectra.columns import Columns
from gradspectra.compiling import SAMPLE, Compiled
from gradspectra.flat import CHUNK, OneThread, chunk, dot_into, flat, given_threads
from gradspectra.fused import BYTES, CPU, FusedPass, address, fits
from gradspectra.inventory import Inventory, WatchedTensor
from gradspectra.readout import Readout, summed
from gradspectra.shards import local
from gradspectra.starts import (
    Coded,
    Start,
    before,
    before_on_host,
    copy_of,
    extent,
    in_steps,
    is_of,
    may_be_coded,
    placed_on,
)

BLOCK = 16
"""Entries that are kept together: a cache line in float32, so that a sample reads little more than itself."""
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


class _Plain:
    """The tensors that the compiled pass measures, as long as they lie where such tensors do.

    entries: of each tensor how many numbers it must have. of: (n,) which tensor each layer is of; offsets: (n,) bytes
    from there to its sample; place: where the layers are.
    """

    def __init__(self, tensors: Sequence[tuple[WatchedTensor, Sequence[tuple[Tensor, Start]]]]) -> None:
        """Of each tensor, and per layer, what is its sample now, and what it was at the start."""
        self.tensors = [tensor for tensor, _ in tensors]
        self.entries = [tensor.pieces[-1][1] for tensor in self.tensors]
        self.firsts = frozenset([tensor.first for tensor in self.tensors])
        self.of = np.array([at for at, (_, layers) in enumerate(tensors) for _ in layers], np.int64)
        self.offsets = np.array([BYTES * start for tensor in self.tensors for start, _ in tensor.pieces], np.uint64)
        columns = np.array([t.first + piece for t in self.tensors for piece in range(len(t.pieces))], np.int64)
        self.place = Columns()(columns) if len(columns) else columns
        self.table, self.sums = np.zeros(len(self.of), SAMPLE), np.empty((len(self.of), 2))
        self._starts = [start for _, layers in tensors for _, start in layers]
        for row, (now, start) in enumerate(pair for _, layers in tensors for pair in layers):
            shape = (len(now), BLOCK, now.stride(0)) if now.dim() == 2 else (1, len(now), len(now))
            self.table[row] = (0, *_place(start, now), *shape)

    def measure(self, compiled: Compiled) -> bool:
        """Write the sums of each layer to `sums`, (n, 2); False where one of the tensors lies otherwise by now."""
        at = [address(tensor.parameter, entries) for tensor, entries in zip(self.tensors, self.entries, strict=True)]
        if not all(at) or not at:
            return False
        self.table["numbers"] = np.array(at, np.uint64)[self.of] + self.offsets
        compiled.drift(len(self.table), self.table.ctypes.data, self.sums.ctypes.data, given_threads())
        return True


def _place(start: Start, now: Tensor) -> tuple[int, int, int, float]:
    """The start of a sample as SAMPLE has it: start, 0 where the compiled pass cannot read it, lower, half and step."""
    if isinstance(start, Tensor):
        return address(start, now.numel()), 0, 0, 0.0
    upper, lower = start["upper"], start["lower"]
    plain = all(codes.is_cpu and codes.is_contiguous() for codes in (upper, lower))
    return (upper.data_ptr() if plain else 0), lower.data_ptr(), lower.numel(), start["step"]


@np.errstate(all="ignore")
def _sums_on_host(square: Tensor, product: Tensor, now: Float32, start: Coded) -> None:
    """The sums of a sample (n,) or (n, BLOCK) from a coded start, in pieces."""
    most = CHUNK * len(now) // now.size
    squares, products = [], []
    for first in range(0, len(now), most):
        then = before_on_host(start, first, min(first + most, len(now)))
        moved, then = (now[first : first + most] - then).ravel(), then.ravel()
        squares.append(np.dot(moved, moved))
        products.append(np.dot(then, np.add(moved, then, out=moved)))
    square.fill_(float(np.sum(squares)))
    product.fill_(float(np.sum(products)))


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
        self._plain = _Plain(())
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
        self._plain = _Plain([(tensor, own) for tensor in self._inventory.tensors if (own := self._in_order(tensor))])

    def _in_order(self, tensor: WatchedTensor) -> list[tuple[Tensor, Start]]:
        """Now and start of each of its layers where the compiled pass can read both, else none."""
        names = self._inventory.table.names
        pairs = [(now, self.starts[names[index]]) for index, now in self._samples((tensor,))]
        readable = fits(tensor) and all(_place(start, now)[0] for now, start in pairs)
        return pairs if readable else []

    @torch.no_grad()
    def measure(self) -> DriftSums:
        """Measure the distances; raises RuntimeError before `begin`. The results stay until they are measured again."""
        if not self._begun:
            raise RuntimeError("the weights at the start were not kept")
        if self._asked is not None:
            self._prepare()
        compiled = None if self._fused is None else self._fused.compiled
        done: frozenset[int] = frozenset()
        if compiled is not None and self._plain.measure(compiled):
            with np.errstate(over="ignore"):
                self._on(CPU).numpy()[:2, self._plain.place] = self._plain.sums.T
            done = self._plain.firsts
        for index, now in self._samples(tensor for tensor in self._inventory.tensors if tensor.first not in done):
            results = self._on(now.device)
            self._sums(results[0, index], results[1, index], now, self.starts[self._inventory.table.names[index]])
        return DriftSums(list(self._results.values()), self._scale)

    @staticmethod
    def _sums(square: Tensor, product: Tensor, now: Tensor, start: Start) -> None:
        if now.is_cpu and now.dtype is torch.float32 and not isinstance(start, Tensor):
            _sums_on_host(square, product, now.numpy(), start)
            return
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
