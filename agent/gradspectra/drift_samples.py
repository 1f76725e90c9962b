"""The samples that drift is measured on, as far as they are float32 numbers on the host: of all layers at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gradspectra_core.records import Float32, Float64
from numpy.typing import NDArray
from torch import Tensor

from gradspectra.columns import Columns
from gradspectra.compiling import SAMPLE, Compiled
from gradspectra.flat import CHUNK, given_threads
from gradspectra.fused import BYTES, address
from gradspectra.inventory import WatchedTensor
from gradspectra.shards import local
from gradspectra.starts import Coded, Start, decoded

BLOCK = 16
"""Entries that are kept together: a cache line in float32, so that a sample reads little more than itself."""


class Samples:
    """The tensors whose samples are taken by the compiled pass, or by numpy, as long as they lie where they must.

    entries: of each tensor how many numbers it must have. of: (n,) which tensor each layer is of; offsets: (n,) bytes
    from there to its sample; place: where the layers are. small: the tensors that numpy takes.
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
        self.table, self.sums = np.zeros(len(self.of), SAMPLE), np.zeros((len(self.of), 2))
        self._starts = [start for _, layers in tensors for _, start in layers]
        for row, (now, start) in enumerate(pair for _, layers in tensors for pair in layers):
            shape = (len(now), BLOCK, now.stride(0)) if now.dim() == 2 else (1, len(now), len(now))
            self.table[row] = (0, *placed_at(start, now), *shape)
        sizes = self.table["blocks"] * self.table["width"]
        large = set(self.of[sizes > CHUNK].tolist())
        self.small = frozenset([tensor.first for at, tensor in enumerate(self.tensors) if at not in large])
        self._together = [
            _Together(rows, self.table[rows], [self._starts[row] for row in rows], self.of[rows], self.offsets[rows])
            for rows in _batches([row for row, at in enumerate(self.of.tolist()) if at not in large], sizes.tolist())
        ]

    def measure(self, compiled: Compiled | None) -> frozenset[int]:
        """Write sums of each layer to `sums`, (n, 2), by numpy where there is no compiled pass.

        Returns the tensors that were measured, by the index of their first layer: none where one lies otherwise by now.
        """
        at = [address(tensor.parameter, entries) for tensor, entries in zip(self.tensors, self.entries, strict=True)]
        if not all(at) or not at:
            return frozenset()
        if compiled is None:
            numbers = [local(tensor.parameter).detach().numpy() for tensor in self.tensors]
            for together in self._together:
                self.sums[together.rows] = together.measured(numbers)
            return self.small
        self.table["numbers"] = np.array(at, np.uint64)[self.of] + self.offsets
        compiled.drift(len(self.table), self.table.ctypes.data, self.sums.ctypes.data, given_threads())
        return self.firsts


def placed_at(start: Start, now: Tensor) -> tuple[int, int, int, float]:
    """The start of a sample as SAMPLE has it: start, 0 where the compiled pass cannot read it, lower, half and step."""
    if isinstance(start, Tensor):
        return address(start, now.numel()), 0, 0, 0.0
    upper, lower = start["upper"], start["lower"]
    plain = all(codes.is_cpu and codes.is_contiguous() for codes in (upper, lower))
    return (upper.data_ptr() if plain else 0), lower.data_ptr(), lower.numel(), start["step"]


def _batches(rows: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Layers whose samples have CHUNK numbers together at most."""
    found: list[list[int]] = []
    filled = CHUNK
    for row in rows:
        if filled + sizes[row] > CHUNK:
            found.append([])
            filled = 0
        found[-1].append(row)
        filled += sizes[row]
    return found


class _Together:
    """Layers whose samples lie one after another while they are measured: numpy's calls take longer than the numbers.

    rows: which layers of Samples these are, coded ones first.
    """

    def __init__(
        self,
        rows: Sequence[int],
        table: NDArray[np.void],
        starts: Sequence[Start],
        of: NDArray[np.int64],
        offsets: NDArray[np.uint64],
    ) -> None:
        order = sorted(range(len(rows)), key=lambda at: isinstance(starts[at], Tensor))
        self.rows = np.array([rows[at] for at in order], np.int64)
        self._coded: list[Coded] = []
        self._plain: list[Float32] = []
        self._views: list[tuple[int, int, tuple[int, int], tuple[int, int]]] = []
        for at in order:
            own, start = table[at], starts[at]
            shape, strides = (int(own["blocks"]), int(own["width"])), (BYTES * int(own["stride"]), BYTES)
            self._views.append((int(of[at]), int(offsets[at]), shape, strides))
            if isinstance(start, Tensor):
                self._plain.append(start.detach().view(-1).numpy())
            else:
                self._coded.append(start)
        sizes = [shape[0] * shape[1] for _, _, shape, _ in self._views]
        self._firsts = np.cumsum([0, *sizes[:-1]])

    @np.errstate(all="ignore")
    def measured(self, numbers: Sequence[Float32]) -> Float64:
        """‖W − W₀‖² and ⟨W, W₀⟩ on each sample, (n, 2). numbers: those of the tensors."""
        views = [np.ndarray(shape, np.float32, numbers[at], offset, each) for at, offset, shape, each in self._views]
        now = np.concatenate([view.ravel() for view in views])
        then = np.concatenate([*([decoded(self._coded)] if self._coded else []), *self._plain])
        moved = now - then
        np.multiply(then, now, out=then)
        np.multiply(moved, moved, out=moved)
        return np.stack([np.add.reduceat(sums, self._firsts) for sums in (moved, then)], 1).astype(np.float64)
