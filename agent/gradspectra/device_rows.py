"""What one pass over the layers of a CUDA device has measured, and how its medians come to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gradspectra_core.records import Bool, Float64, Int64
from torch import Tensor

from gradspectra.compiling import MOST_BLOCKS
from gradspectra.device_build import Build
from gradspectra.device_table import DeviceLayout, Kinds, there
from gradspectra.flat import placed
from gradspectra.inventory import WatchedTensor
from gradspectra.second_numbers import OF_GRADIENT, OF_MEDIAN, OF_SUMS, OF_UPDATE


@dataclass(frozen=True, slots=True)
class Found:
    """Where the numbers of a tensor lie, of which types, and which coefficients are its."""

    tensor: WatchedTensor
    addresses: tuple[int, int, int, int, int]
    kinds: Kinds
    place: int


class RowsLayout:
    """Tensors that were measured together, and the tables of their layers."""

    def __init__(
        self, found: Sequence[Found], pieces: Sequence[Sequence[tuple[int, int, int]]], device: torch.device
    ) -> None:
        self.tensors = frozenset(own.tensor.first for own in found)
        self.of = np.array([at for at, own in enumerate(pieces) for _ in own], np.int64)
        """(n,) which of the tensors each layer belongs to."""
        flat = np.array([piece for own in pieces for piece in own], np.int64)
        self.columns = np.array(
            [own.tensor.first + at for own, its in zip(found, pieces, strict=True) for at in range(len(its))]
        )
        self.entries: Int64 = flat[:, 1] * flat[:, 2]
        kinds = [found[at].kinds for at in self.of]
        sizes = np.array([[kind.itemsize for kind in own] for own in kinds], np.int64)
        self.starts = flat[:, :1] * sizes
        self.second = [own[3] for own in kinds]
        shapes = [(int(rows), int(each)) for _, rows, each in flat]
        self.tables = DeviceLayout(shapes, kinds, self.columns, device)
        self.place = placed(self.columns.tolist(), device)


@dataclass(slots=True)
class DeviceRows:
    """What one pass has measured of n layers on a device; what of it is the first tier's is in its results already.

    tensors: by the index of their first layer. columns, entries: (n,) the layers, and how many numbers each has here.
    update: whether the direction is that of a known update; factor: (n,) ΔW = −factor·d. moments: (n,) whether the
    sums of the moments are Adam's; other_moments: (n,) whether the optimizer keeps Adam's, and they are not these.
    """

    tensors: frozenset[int]
    columns: Int64
    entries: Int64
    update: bool
    factor: Float64
    moments: Bool
    other_moments: Bool
    rows: Tensor
    """(7, n) on the device: those of OF_GRADIENT, OF_UPDATE and OF_SUMS, and 1 − β₂ᵗ."""
    words: Tensor
    layout: RowsLayout
    build: Build

    def put(self, results: Tensor, present: Bool) -> None:
        """Write what is of the second tier. results: (len(ROWS), L) on the device; present: alike."""
        results[: OF_SUMS.stop].index_copy_(1, self.layout.place, self.rows[: OF_SUMS.stop])
        present[OF_GRADIENT, self.columns] = True
        present[OF_UPDATE, self.columns] = self.update
        present[OF_SUMS, self.columns] = self.moments

    def put_medians(self, results: Tensor, present: Bool, layers: frozenset[int]) -> None:
        """Measure the medians of these layers, as far as their moments were found, and write them.

        To be asked for before the optimizer steps again.
        """
        wanted = np.array([column in layers for column in self.columns.tolist()], np.bool_) & self.moments
        for kind in dict.fromkeys(self.layout.second):
            own = [at for at in np.flatnonzero(wanted & (self.entries > 0)).tolist() if self.layout.second[at] is kind]
            if own:
                columns = self.columns[own]
                results[OF_MEDIAN].index_copy_(1, placed(columns.tolist(), results.device), self._medians(own, kind))
                present[OF_MEDIAN, columns] = True

    def _medians(self, chosen: Sequence[int], kind: torch.dtype) -> Tensor:
        """√ of the median of v̂ of some layers, the lower of two, on a sample of each: (1, n)."""
        assert self.build.kernels is not None
        entries = self.entries[list(chosen)]
        stride = -(-entries // MOST_BLOCKS) | 1
        counts = -(-entries // stride)
        device = self.rows.device
        table = there(np.stack([np.array(chosen), counts, stride], 1), device)
        sample = self.build.kernels.samples(self.words, table.view(-1, 3), int(counts.max()), kind)
        ordered = sample.sort(1).values
        middle = ordered.gather(1, there((counts - 1) // 2, device)[:, None])[:, 0]
        largest = ordered[:, -1]  # a NaN, where there is one
        medians = torch.where(largest.isnan(), largest, middle)
        return (medians / self.rows[6].index_select(0, table.view(-1, 3)[:, 0])).sqrt_()[None]
