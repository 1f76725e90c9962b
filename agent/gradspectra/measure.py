"""The first tier: what is measured of every layer at a recorded step, in one pass on the device and one host copy."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import torch
from gradspectra_core.records import Float32, Float64
from torch import Tensor

from gradspectra.accelerated import AcceleratorRows, lost_gradients
from gradspectra.bundles import bundle, bundle_rows, bundle_update
from gradspectra.columns import Columns
from gradspectra.compiling import ROW
from gradspectra.device_rows import DeviceRows
from gradspectra.flat import Scratch, dot_into, extremes_into, flat, placed
from gradspectra.fused import CPU, FusedPass, FusedRows
from gradspectra.inventory import Inventory, WatchedTensor
from gradspectra.layer_marks import FiniteGradient, LayerMarks, finite_gradient
from gradspectra.shards import local
from gradspectra.updates import intended_update, square_into

STATISTICS = ("grad_sq", "grad_max", "weight_sq", "part_sq", "update_sq", "drift_sq", "weight_dot_init")
COUNT_STATISTICS = ("grad_nonfinite",)

SQUARE, LOW, HIGH, WEIGHT, UPDATE = range(5)
"""Rows of the results on the device."""
_OF_FUSED = [ROW.index(name) for name in ("whole_sq", "grad_max", "grad_max", "weight_sq", "update_sq")]


class FirstTier:
    """Measures the tensors of one inventory; results stay on the device until `results` are copied.

    everything: as FusedPass has it.
    """

    def __init__(self, inventory: Inventory, everything: bool = False) -> None:
        self.inventory = inventory
        self.fused = FusedPass(inventory, everything)
        layers = len(inventory.table)
        self._results: dict[torch.device, Tensor] = {}
        self._accelerators: dict[torch.device, AcceleratorRows] = {}
        self._slots: list[tuple[Tensor, ...]] = []
        self._scratch = Scratch()
        self._column_device: list[torch.device] = []
        self._entries = [stop - start for tensor in inventory.tensors for start, stop in tensor.pieces]
        self._sorted: dict[int, list[tuple[WatchedTensor, ...]]] = {}
        self._columns: dict[int, Tensor] = {}
        for tensor in inventory.tensors:
            device, first, count = tensor.parameter.device, tensor.first, len(tensor.pieces)
            self._slots.extend(row.unbind(0) for row in self._on(device, layers)[:, first : first + count].unbind(1))
            self._column_device.extend([device] * count)
        self._host: Float32 = self._results[CPU].numpy() if CPU in self._results else np.zeros((5, 0), np.float32)
        """The results on the host, (5, L), to be written to."""
        self._columns_of = Columns()
        self.marks = LayerMarks.none(layers)

    def _on(self, device: torch.device, layers: int) -> Tensor:
        if device not in self._results and device.type != "cpu":
            self._accelerators[device] = AcceleratorRows(device, self.inventory)
            self._results[device] = self._accelerators[device].results
        elif device not in self._results:
            self._results[device] = torch.zeros(5, layers, dtype=torch.float32, device=device)
        return self._results[device]

    def finish(self) -> LayerMarks:
        """End a step: returns its marks and starts with new ones. The results stay until they are written again."""
        marks, self.marks = self.marks, LayerMarks.none(len(self.inventory.table))
        return marks

    def take(
        self, tensors: Sequence[WatchedTensor], optimizer: Any, skipped: bool = False, early: Container[int] = ()
    ) -> FusedRows | DeviceRows | None:
        """Measure all tensors of an optimizer (None: not known, all tensors) after it has stepped.

        skipped: it did nothing. early: identities of parameters whose gradient was measured before. Returns what one
        compiled pass has measured of them, with numbers of the second tier; None where there is none.
        """
        fused = None if skipped else self.fused.take(tensors, optimizer, early)
        if fused is not None:
            self._put_fused(fused)
        taken: Container[int] = frozenset() if fused is None else fused.tensors
        if fused is not None and len(fused.tensors) == len(tensors):
            return fused
        there = self._take_accelerated(tensors, optimizer, skipped, early)
        for together in [own for own in self._bundles(tensors) if own[0].parameter.device not in self._accelerators]:
            left = [tensor for tensor in together if tensor.first not in taken]
            if 1 < len(left) == len(together) and not skipped and not any(id(t.parameter) in early for t in together):
                found = bundle_rows(together, optimizer)
                if found is not None:
                    self._put_bundle(together, *found)
                    continue
            for tensor in left:
                self._weight(tensor)
                if now := id(tensor.parameter) not in early:
                    self.take_gradient(tensor)
                if now or tensor.parameter.grad is not None:
                    self._update(tensor, optimizer, skipped)
        return fused if there is None else there

    def _take_accelerated(
        self, tensors: Sequence[WatchedTensor], optimizer: Any, skipped: bool, early: Container[int]
    ) -> DeviceRows | None:
        if not self._accelerators:
            return None
        own = [tensor for tensor in tensors if tensor.parameter.device in self._accelerators]
        there = None if skipped else self._take_in_one_pass(own, optimizer, early)
        taken: Container[int] = frozenset() if there is None else there.tensors
        own = [tensor for tensor in own if tensor.first not in taken]
        self.take_gradients([tensor for tensor in own if id(tensor.parameter) not in early])
        for device, rows in self._accelerators.items():
            rows.weights([tensor for tensor in own if tensor.parameter.device == device])
        for whole in self._bundles(tensors):
            together = [t for t in whole if t.parameter.device in self._accelerators and t.first not in taken]
            if not together:
                continue
            dense = all(t.parameter.grad is not None and not t.parameter.grad.is_sparse for t in together)
            known = len(together) > 1 and optimizer is not None and dense and not skipped
            found = bundle_update(together, optimizer) if known else None
            if found is None:
                for tensor in together:
                    self._update(tensor, optimizer, skipped)
                continue
            columns = [tensor.first for tensor in together]
            self._accelerators[together[0].parameter.device].put_updates(columns, found[0])
            self.marks.update[columns] = True
            self.marks.factor[columns] = found[1] ** 2
        return there

    def _take_in_one_pass(
        self, tensors: Sequence[WatchedTensor], optimizer: Any, early: Container[int]
    ) -> DeviceRows | None:
        """Measure what kernels can, where all layers lie on one device."""
        if len(self._results) > 1:
            return None
        (rows,) = self._accelerators.values()
        found = rows.take(tensors, optimizer, early)
        if found is not None:
            self.marks.gradient[found.columns] = True
            self.marks.update[found.columns] = found.update
            self.marks.factor[found.columns] = found.factor**2
        return found

    @property
    def one_pass(self) -> bool:
        """Whether all sums come in one pass, those of the second tier too."""
        return self.fused.compiled is not None or any(rows.in_one_pass for rows in self._accelerators.values())

    @property
    def state(self) -> str:
        """In words, how it stands with the one pass."""
        return next((rows.state for rows in self._accelerators.values() if rows.state), self.fused.state)

    def _put_fused(self, fused: FusedRows) -> None:
        rows, at = fused.rows.take(_OF_FUSED, 1), self._columns_of(fused.columns)
        np.negative(rows[:, LOW], out=rows[:, LOW])
        with np.errstate(over="ignore"):
            self._host[:, at] = rows.T
        self.marks.gradient[at] = True
        self.marks.update[at] = fused.update
        self.marks.factor[at] = fused.factor**2
        lost, left = fused.row("grad_nonfinite"), fused.row("grad_sq")
        for layer in lost.nonzero()[0].tolist():
            count, some = int(lost[layer]), bool(lost[layer] < fused.entries[layer])
            self.marks.repaired[int(fused.columns[layer])] = FiniteGradient(count, left[layer], rows[layer, HIGH], some)

    def _bundles(self, tensors: Sequence[WatchedTensor]) -> list[tuple[WatchedTensor, ...]]:
        key = tensors[0].optimizer if tensors else -1
        if key not in self._sorted:
            self._sorted[key] = bundle(tensors)
        return self._sorted[key]

    def _put_bundle(self, tensors: tuple[WatchedTensor, ...], rows: Tensor, factor: float | None) -> None:
        columns = [tensor.first for tensor in tensors]
        place = self._columns.get(columns[0])
        if place is None:
            place = self._columns[columns[0]] = placed(columns, rows.device)
        self._results[rows.device].index_copy_(1, place, rows)
        self.marks.gradient[columns] = True
        if factor is not None:
            self.marks.update[columns] = True
            self.marks.factor[columns] = factor * factor

    def take_gradients(self, tensors: Sequence[WatchedTensor]) -> None:
        """Measure the gradients alone, as they are now."""
        for device, rows in self._accelerators.items():
            there = [t for t in tensors if t.parameter.device == device and t.parameter.grad is not None]
            rows.gradients(there)
            for tensor in there:
                self.marks.gradient[tensor.first : tensor.first + len(tensor.pieces)] = True
        for tensor in tensors:
            if tensor.parameter.device not in self._accelerators:
                self.take_gradient(tensor)

    def take_gradient(self, tensor: WatchedTensor) -> None:
        """Measure one gradient on a CPU alone, as it is now."""
        gradient = tensor.parameter.grad
        if gradient is None:
            return
        numbers = flat(local(gradient), tensor.axis)
        last = tensor.first + len(tensor.pieces)
        self.marks.gradient[tensor.first : last] = True
        whole = len(tensor.pieces) == 1
        for slots, (start, stop) in zip(self._slots[tensor.first : last], tensor.pieces, strict=True):
            self._extent(slots, numbers if whole else numbers[start:stop])

    def _extent(self, slots: tuple[Tensor, ...], numbers: Tensor) -> None:
        if numbers.numel() == 0:
            for row in (SQUARE, LOW, HIGH):
                slots[row].zero_()
            return
        dot_into(slots[SQUARE], numbers, numbers)
        extremes_into(slots[LOW], slots[HIGH], numbers)

    def _weight(self, tensor: WatchedTensor) -> None:
        numbers = flat(local(tensor.parameter), tensor.axis)
        whole = len(tensor.pieces) == 1
        for index, (start, stop) in enumerate(tensor.pieces, tensor.first):
            piece = numbers if whole else numbers[start:stop]
            dot_into(self._slots[index][WEIGHT], piece, piece)

    def _update(self, tensor: WatchedTensor, optimizer: Any, skipped: bool) -> None:
        last = tensor.first + len(tensor.pieces)
        gradient = tensor.parameter.grad
        if optimizer is None or (gradient is not None and gradient.is_sparse):
            return
        if skipped or gradient is None:
            self.marks.update[tensor.first : last] = True
            for slots in self._slots[tensor.first : last]:
                slots[UPDATE].zero_()
            return
        update = intended_update(optimizer, (tensor,))
        if update is None:
            return
        self.marks.update[tensor.first : last] = True
        direction, factor = update
        scratch = self._scratch.of(tensor.parameter)
        for index, (start, stop) in enumerate(tensor.pieces, tensor.first):
            square_into(self._slots[index][UPDATE], direction, start, stop, scratch)
            if isinstance(factor, Tensor):
                self._slots[index][UPDATE].mul_(factor * factor)
            else:
                self.marks.factor[index] = factor * factor

    def results(self) -> list[Tensor]:
        """The results of each device, to be copied to the host: (5, L), then of accelerators `finite`, (2, L)."""
        return [*self._results.values(), *(rows.finite for rows in self._accelerators.values())]

    def rows(self, copies: Sequence[Float64], marks: LayerMarks) -> Float64:
        """Put the host copies of `results` together, each layer's column from the device it lies on: (5, L).

        To the marks is added what accelerators have found of entries that are not finite.
        """
        if len(copies) == 1:
            return copies[0]
        place = {device: index for index, device in enumerate(self._results)}
        columns = [copies[place[device]][:, i] for i, device in enumerate(self._column_device)]
        rows = np.stack(columns, axis=1) if columns else np.zeros((5, 0))
        for device, finite in zip(self._accelerators, copies[len(self._results) :], strict=True):
            here = [marks.gradient[i] and own == device for i, own in enumerate(self._column_device)]
            marks.repaired = lost_gradients(rows, finite, np.array(here), self._entries) | marks.repaired
        return rows

    def repair(self) -> None:
        """On the host, look closer at each gradient whose sum of squares is not finite, while it is still there."""
        finite = np.isfinite(self._host[SQUARE])
        if finite.all():
            return
        for tensor in [t for t in self.inventory.tensors if t.parameter.device not in self._accelerators]:
            for index, (start, stop) in enumerate(tensor.pieces, tensor.first):
                suspicious = self.marks.gradient[index] and not finite[index]
                if suspicious and index not in self.marks.repaired:
                    assert tensor.parameter.grad is not None
                    numbers = flat(local(tensor.parameter.grad), tensor.axis)
                    whole = len(tensor.pieces) == 1
                    self.marks.repaired[index] = finite_gradient(numbers if whole else numbers[start:stop])

    def share(self) -> Tensor:
        """What this rank has of sharded tensors, (6, L) float64 on the host, in the order that `adopt` takes.

        Squares of gradient, weight and update, entries that are not finite, whether any is finite, the largest entry.
        """
        (results,) = self._results.values()
        rows = results.double().cpu()
        for own in self._accelerators.values():
            finite = own.finite.cpu().numpy()
            self.marks.repaired |= lost_gradients(rows.numpy(), finite, self.marks.gradient, self._entries)
        shares = torch.stack([rows[SQUARE], rows[WEIGHT], rows[UPDATE], *rows.new_zeros(3, rows.shape[1])])
        shares[4] = rows.new_tensor([stop > start for t in self.inventory.tensors for start, stop in t.pieces])
        shares[5] = torch.maximum(-rows[LOW], rows[HIGH])
        for layer, left in self.marks.repaired.items():
            shares[0, layer], shares[3, layer] = left.square, left.nonfinite
            shares[4, layer], shares[5, layer] = float(left.any_finite), left.largest
        return shares

    def adopt(self, whole: Float64) -> None:
        """Take the tensors' numbers over all ranks in the place of this rank's."""
        (results,) = self._results.values()
        square, weight, update, nonfinite, finite, largest = whole
        rows = np.stack([square, -largest, largest, weight, update])
        results.copy_(torch.from_numpy(rows))
        for own in self._accelerators.values():
            own.finite.zero_()  # what this rank has found is in the marks of all
        self.marks.repaired = {
            layer: FiniteGradient(int(nonfinite[layer]), square[layer], largest[layer], bool(finite[layer]))
            for layer in np.flatnonzero(nonfinite).tolist()
        }
