"""What the kernels of triton_kernels.py read besides the tensors themselves: tables of layers and of their chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gradspectra_core.records import Int64
from torch import Tensor

from gradspectra import compiling

NO_UPDATE, ADAM, LINEAR = compiling.NO_UPDATE, compiling.ADAM, compiling.LINEAR
GRADIENT_ALONE = -1
"""A rule beside those of the compiled pass: nothing but the gradient is read."""

ROW = (
    "whole_sq",
    "grad_sq",
    "grad_max",
    "grad_nonfinite",
    "grad_l1",
    "grad_zero_rows",
    "grad_dot_weight",
    "weight_sq",
    "update_sq",
    "update_dot_grad",
    "first_sq",
    "second_sum",
)
"""The sums of a chunk, float32: of the finite entries of the gradient, but for whole_sq. Of a gradient alone the first
four."""

WORDS = 16
"""Words of 8 bytes for a layer, new at each step. Whole numbers: the addresses of gradient, weights and the optimizer's
first and second, of the number of steps on the device (0: the host knows it), and whether the gradient was measured
before; two are unused. Then float64: scale, epsilon, decay, factor and both corrections as in Coefficients, ln β₁ and
ln β₂."""
NUMBERS = WORDS // 2
"""Where the float64 of a layer begin."""
CHUNK_WORDS = 5
"""Of a chunk: its layer, its first number in it, its rows, numbers of each row in it, and from one row to the next."""
LAYER_WORDS = 4
"""Of a layer for `layers`: its first chunk, its chunks, in how many parts a row is cut, its column in the results."""

WIDE = 1 << 14
"""Numbers of a chunk at most: so few are added up in float32."""
BLOCK = 1 << 10
"""Numbers that a program reads at once."""
WIDTHS = (1, 4, 16, 64, 256)
"""Of what BLOCK reads the numbers of one row: the least that holds a row, or the largest."""

Kinds = tuple[torch.dtype, torch.dtype, torch.dtype, torch.dtype]
"""Of gradient, weights, first and second."""
Spec = tuple[Kinds, int, int]
"""What a kernel is compiled for: types of what it reads, numbers of a row it reads at once, rule of the update."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Chunks that one launch of the same kernel reads, one after another in the table."""

    kinds: Kinds
    width: int
    first: int
    count: int


class DeviceLayout:
    """The tables of layers that are measured together: all that is the same at each step.

    shapes: of each layer its output units and the numbers of each. kinds: alike. columns: (n,) in the results.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]], kinds: Sequence[Kinds], columns: Int64, device: torch.device
    ) -> None:
        groups: dict[tuple[Kinds, int], list[int]] = {}
        for index, (own, (_, each)) in enumerate(zip(kinds, shapes, strict=True)):
            width = next((width for width in WIDTHS if width >= each), WIDTHS[-1])
            groups.setdefault((own, width), []).append(index)
        self.launches: list[Launch] = []
        tables: list[Int64] = []
        pieces = np.zeros((len(shapes), LAYER_WORDS), np.int64)
        self.chunks = 0
        for (own, width), indices in groups.items():
            first = self.chunks
            for index in indices:
                found, parts = chunks_of(*shapes[index])
                tables.append(np.concatenate([np.full((len(found), 1), index), found], 1))
                pieces[index] = self.chunks, len(found), parts, columns[index]
                self.chunks += len(found)
            if self.chunks > first:
                self.launches.append(Launch(own, width, first, self.chunks - first))
        self.table = there(np.concatenate(tables), device)
        self.pieces = there(pieces, device)


def chunks_of(units: int, each: int) -> tuple[Int64, int]:
    """The chunks of a layer, (n, CHUNK_WORDS − 1), and in how many parts a row is cut.

    Where rows are cut, the first parts of all rows come first, then the second.
    """
    if not units * each:
        return np.zeros((0, CHUNK_WORDS - 1), np.int64), 1
    parts = -(-each // WIDE)
    width, rows = -(-each // parts), max(WIDE // each, 1)
    first_row = np.tile(np.arange(0, units, rows), parts)
    first_column = np.repeat(np.arange(parts) * width, -(-units // rows))
    starts = first_row * each + first_column
    return np.stack(
        [
            starts,
            np.minimum(rows, units - first_row),
            np.minimum(width, each - first_column),
            np.full(len(starts), each),
        ],
        1,
    ), parts


def there(numbers: Int64, device: torch.device) -> Tensor:
    """Whole numbers on a device, as a vector. Nothing waits for it: the memory that they travel from is pinned."""
    host = torch.from_numpy(numbers.ravel())
    if device.type == "cuda":
        host = torch.empty(len(host), dtype=torch.int64, device="cpu", pin_memory=True).copy_(host)
    return host.to(device, non_blocking=True)
