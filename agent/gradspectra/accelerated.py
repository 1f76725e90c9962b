"""The first tier of tensors on an accelerator: all of it on the stream of the training, nothing that waits for it.

The host cannot look whether a gradient is finite without waiting. So what is left without the entries that are not
finite is always measured, and the host chooses when the numbers have come.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
import torch
from gradspectra_core.records import Bool, Float64
from torch import Tensor

from gradspectra.device_build import build_on
from gradspectra.device_pass import DevicePass
from gradspectra.device_rows import DeviceRows
from gradspectra.flat import ACCELERATOR_CHUNK, flat, placed, widest
from gradspectra.inventory import Inventory, WatchedTensor
from gradspectra.layer_marks import FiniteGradient
from gradspectra.settings import fused_wanted, kernels_wanted
from gradspectra.shards import local

TOGETHER = 4096
"""Most numbers of a piece that is measured together with others as long as it is."""
KEPT_PLACES = 16
FOR_KERNELS = ("cuda",)
"""Types of devices that the kernels of triton_kernels.py run on."""
ASKED_FOR = "not compiled: GRADSPECTRA_FUSED=triton has kernels compiled"
LOST, FINITE_SQUARE = range(2)
"""Rows of `AcceleratorRows.finite`: how many entries are not finite, the sum of squares of the others."""


class AcceleratorRows:
    """Measures tensors on one accelerator into its results, (5, L) float32 in the order of measure's.

    LOW and HIGH are of the finite entries. finite: (2, L) float64, see LOST; float32 where there is nothing wider.
    one_pass: kernels that read every number once, on a CUDA device; what they cannot measure is left to torch's
    operations. Raises ValueError for a wrong GRADSPECTRA_FUSED.
    """

    def __init__(self, device: torch.device, inventory: Inventory) -> None:
        layers = len(inventory.table)
        self.results = torch.zeros(5, layers, dtype=torch.float32, device=device)
        self.finite = torch.zeros(2, layers, dtype=widest(device), device=device)
        self._device = device
        self._places: dict[tuple[int, ...], Tensor] = {}
        build = build_on(device) if kernels_wanted() and device.type in FOR_KERNELS else None
        self.one_pass = None if build is None else DevicePass(build, inventory, self.results, self.finite)

    @property
    def in_one_pass(self) -> bool:
        """Whether the kernels are in use."""
        return self.one_pass is not None and self.one_pass.build.in_use

    @property
    def state(self) -> str:
        """In words, how it stands with the kernels; empty where such a device has none, or none are wanted."""
        if self.one_pass is not None:
            return self.one_pass.build.state
        return ASKED_FOR if self._device.type in FOR_KERNELS and fused_wanted() else ""

    def take(self, tensors: Sequence[WatchedTensor], optimizer: Any, early: Container[int]) -> DeviceRows | None:
        """Measure in one pass what it can measure of these; see DevicePass.take."""
        return None if self.one_pass is None else self.one_pass.take(tensors, optimizer, early)

    def gradients(self, tensors: Sequence[WatchedTensor]) -> None:
        """Measure gradients, which all of these tensors have."""
        if self.one_pass is not None:
            known = self.one_pass.gradients(tensors)
            tensors = [tensor for tensor in tensors if tensor.first not in known]
        columns, pieces = _pieces(tensors, lambda tensor: tensor.parameter.grad)
        if not columns:
            return
        self.results[0].index_copy_(0, self._place(columns), squares(pieces))
        groups: dict[tuple[int, torch.dtype], list[int]] = {}
        for index, piece in enumerate(pieces):
            alone = -1 - index if piece.numel() > TOGETHER else piece.numel()
            groups.setdefault((alone, piece.dtype), []).append(index)
        found = []
        for group in groups.values():
            whole = pieces[group[0]] if len(group) == 1 else torch.cat([pieces[index] for index in group])
            found.append(finite_rows(whole.view(len(group), -1)))
        order = [columns[index] for group in groups.values() for index in group]
        rows, place = torch.cat(found, 1), self._place(order)
        self.finite.index_copy_(1, place, rows[:2])
        self.results[1:3].index_copy_(1, place, rows[2:].float())

    def weights(self, tensors: Sequence[WatchedTensor]) -> None:
        """Measure the weights of these tensors."""
        columns, pieces = _pieces(tensors, lambda tensor: tensor.parameter)
        if columns:
            self.results[3].index_copy_(0, self._place(columns), squares(pieces))

    def put_updates(self, columns: Sequence[int], row: Tensor) -> None:
        """Take over ‖d‖² of these layers' updates."""
        self.results[4].index_copy_(0, self._place(columns), row)

    def _place(self, columns: Sequence[int]) -> Tensor:
        key = tuple(columns)
        place = self._places.get(key)
        if place is None:
            if len(self._places) >= KEPT_PLACES + len(self.results[0]):
                self._places.clear()
            place = self._places[key] = placed(columns, self._device)
        return place


def _pieces(
    tensors: Sequence[WatchedTensor], of: Callable[[WatchedTensor], Tensor | None]
) -> tuple[list[int], list[Tensor]]:
    """The layers of these tensors and the numbers of each, as far as there are any."""
    columns: list[int] = []
    pieces: list[Tensor] = []
    for tensor in tensors:
        found = of(tensor)
        if found is None:
            continue
        numbers = flat(local(found).detach(), tensor.axis)
        whole = len(tensor.pieces) == 1
        for column, (start, stop) in enumerate(tensor.pieces, tensor.first):
            columns.append(column)
            pieces.append(numbers if whole else numbers[start:stop])
    return columns, pieces


def squares(pieces: Sequence[Tensor]) -> Tensor:
    """Sums of squares of n vectors, in float32 or wider and told in float32: (n,)."""
    found: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(piece.dtype for piece in pieces):
        own = [index for index, piece in enumerate(pieces) if piece.dtype is dtype]
        wide = torch.promote_types(dtype, torch.float32)
        chosen = [pieces[index] for index in own]
        norms = torch._foreach_norm(chosen, 2) if wide is dtype else torch._foreach_norm(chosen, 2, wide)
        found |= zip(own, norms, strict=True)
    return torch.stack([found[index].float() for index in range(len(pieces))]).square_()


def finite_rows(matrix: Tensor) -> Tensor:
    """Of each row of (n, k): entries that are not finite, and of the others sum of squares, smallest, largest.

    Returns (4, n) in the widest type that there is; 0 where there are no others.
    """
    widest_here = widest(matrix.device)
    if matrix.shape[1] == 0:
        return torch.zeros(4, len(matrix), dtype=widest_here, device=matrix.device)
    wide = torch.promote_types(matrix.dtype, torch.float32)
    found = []
    for part in torch.split(matrix, max(ACCELERATOR_CHUNK // len(matrix), 1), 1):
        kept = torch.nan_to_num(part.to(wide), 0.0, 0.0, 0.0)
        low, high = torch.aminmax(kept, dim=1)
        square = torch.linalg.vector_norm(kept, dim=1).to(widest_here).square_()
        rows = (kept != part).sum(1), square, low, high
        found.append(torch.stack([row.to(widest_here) for row in rows]))
    if len(found) == 1:
        return found[0]
    lost, square, low, high = torch.stack(found).unbind(1)
    return torch.stack([lost.sum(0), square.sum(0), low.amin(0), high.amax(0)])


def lost_gradients(rows: Float64, finite: Float64, here: Bool, entries: Sequence[int]) -> dict[int, FiniteGradient]:
    """What an accelerator has found, by layer, of gradients whose sum of squares is not finite.

    rows: (5, L), finite: (2, L), as AcceleratorRows has them. here: (L,) lie there. entries: numbers of each layer.
    """
    found = {}
    for layer in np.flatnonzero(here & ((finite[LOST] > 0) | ~np.isfinite(rows[0]))).tolist():
        count, square = int(finite[LOST, layer]), float(finite[FINITE_SQUARE, layer])
        largest = float(max(-rows[1, layer], rows[2, layer]))
        found[layer] = FiniteGradient(count, square, largest, count < entries[layer])
    return found
