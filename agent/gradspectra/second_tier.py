"""The second tier: numbers that change slowly or cost more, of a few layers at each recorded step, in turn.

It has a cadence of its own, beside that of the spectra, since it measures also layers without a spectrum, and at
recorded steps alone. The budget gives it what the first tier and the spectra leave, at most a tenth; where they leave
nothing, as much as brings every layer round each 200 steps: a lap costs about three measurements of the first tier, so
that is next to nothing. Without a budget every layer is measured at each recorded step.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from gradspectra_core.records import Bool, Float32, Float64, Int64
from torch import Tensor

from gradspectra.budget import LARGEST_PIECE, Budget
from gradspectra.columns import Columns
from gradspectra.device_rows import DeviceRows
from gradspectra.flat import Scratch, flat, placed
from gradspectra.fused import CPU, FusedPass, FusedRows
from gradspectra.inventory import Inventory, WatchedTensor
from gradspectra.layer_marks import LayerMarks
from gradspectra.measure import FirstTier
from gradspectra.second_fused import put_medians, put_outputs, put_rows
from gradspectra.second_numbers import (
    OF_FORWARD,
    OF_GRADIENT,
    OF_MOMENTS,
    OF_ROUNDING,
    OF_SUMS,
    OF_UPDATE,
    ROWS,
    SAMPLE,
    WITH_GRADIENT,
    gradient_rows,
    moment_rows,
    moved_rows,
    rounding_rows,
    units,
    update_rows,
)
from gradspectra.second_units import Unit, dense, expected_seconds, learned, together
from gradspectra.staging import LOW_PRECISION, Staging, put_update
from gradspectra.turns import Turns
from gradspectra.updates import intended_update, same_steps

SAMPLED = 1 << 14
"""Second moments that medians are taken of at a step within a budget, in turn: four layers of the largest sample."""


@dataclass(slots=True)
class SecondResults:
    """What was measured at a step. results: (len(ROWS), L) of each device; present: alike, what of it is new."""

    results: list[Tensor]
    present: Bool


class SecondTier:
    """Measures the tensors of one inventory in turn; results stay on the device. optimizers: as Staging's."""

    def __init__(self, inventory: Inventory, budget: Budget, optimizers: Sequence[Any] = ()) -> None:
        self._inventory = inventory
        self._budget = budget
        self._units = [self._unit(tensors) for tensors in together(inventory.tensors)]
        self._results: dict[torch.device, Tensor] = {}
        self._present = self._nothing()
        self._scratch = Scratch()
        self._staged: dict[int, Tensor] = {}
        self._staging = Staging(inventory.tensors, optimizers)
        sizes = [min(stop - start, SAMPLE) for tensor in inventory.tensors for start, stop in tensor.pieces]
        self._samples = Turns(sizes, budget.room(SAMPLED))
        self._columns_of = Columns()
        self._medians: frozenset[int] = frozenset()
        """Layers whose medians are taken at this step."""
        self._next = 0
        self._credit = 0.0
        self._speed = 1.0
        self._lap = 0
        self.too_large: dict[str, float] = {}
        self._plan()

    def _unit(self, tensors: tuple[WatchedTensor, ...]) -> Unit:
        columns = [column for t in tensors for column in range(t.first, t.first + len(t.pieces))]
        layers = [self._inventory.table.layers[column] for column in columns]
        counts = tuple(units(layer.shape, tensors[0].axis) for layer in layers)
        place, firsts = placed(columns, tensors[0].parameter.device), frozenset(tensor.first for tensor in tensors)
        expected = expected_seconds(sum(t.parameter.numel() for t in tensors))
        return Unit(tensors, firsts, tuple(columns), place, counts, expected)

    def _nothing(self) -> Bool:
        return np.zeros((len(ROWS), len(self._inventory.table)), np.bool_)

    def due(self) -> list[Unit]:
        """The units whose turn it is at the recorded step that comes: all, or as many as the budget pays for."""
        if self._budget.share is None:
            return self._with_medians(list(self._units))
        self._credit += self._budget.second_seconds()
        self._credit = min(self._credit, LARGEST_PIECE * self._budget.step_seconds)
        found: list[Unit] = []
        for _ in self._units:
            unit = self._units[self._next]
            cost = unit.cost(self._speed)
            if self._budget.too_large(cost):
                self._refuse(unit)
            elif cost > self._credit:
                break
            else:
                self._credit -= cost
                found.append(unit)
                self.too_large.pop(unit.tensors[0].name, None)
            self._next = (self._next + 1) % len(self._units)
        return self._with_medians(found)

    def _refuse(self, unit: Unit) -> None:
        """A unit is left out since it would take too much of a step."""
        self.too_large[unit.tensors[0].name] = unit.cost(self._speed)
        unit.doubt.refused(unit.taken >= 0)

    def _with_medians(self, due: list[Unit]) -> list[Unit]:
        """The same, once it is chosen whose medians are taken (samples lie far apart) and whose weights are kept."""
        self._medians = frozenset(self._samples.take(list(chain.from_iterable(unit.layers for unit in due))))
        self._staging.choose([tensor for unit in due for tensor in unit.tensors])
        return due

    def cadence(self) -> int | None:
        """Steps between two measurements of a layer as they come at present; None before one has come twice."""
        return self._lap or None

    def stage(self, due: Sequence[Unit]) -> None:
        """Keep the weights of a few tensors of these units as they are before their optimizer steps."""
        for tensor in chain.from_iterable(unit.tensors for unit in due):
            if id(tensor.parameter) in self._staging.chosen:
                self._staged[id(tensor.parameter)] = flat(tensor.parameter.detach(), tensor.axis).clone()

    def put_fused(self, fused: FusedRows | DeviceRows, early: Container[int] = ()) -> None:
        """Take over what came with the first tier, for all layers that it came for. early: as for `take`."""
        if isinstance(fused, DeviceRows):
            fused.put(self._on(fused.rows.device), self._present)
            lost = [t for t in self._inventory.tensors if t.first in fused.tensors and id(t.parameter) in early]
            for tensor in lost:
                self._present[WITH_GRADIENT, tensor.first : tensor.first + len(tensor.pieces)] = False
        else:
            put_rows(self._on_host(), self._present, fused, self._columns_of(fused.columns))

    def take_medians(self, due: Sequence[Unit], fused: FusedRows | DeviceRows, compiled: FusedPass) -> frozenset[int]:
        """Measure of these units what the compiled pass can after `put_fused`.

        Returns the tensors, by the index of their first layer, of which nothing is left to be measured.
        """
        layers = self._medians.intersection(chain.from_iterable(unit.layers for unit in due))
        if isinstance(fused, DeviceRows):
            fused.put_medians(self._on(fused.rows.device), self._present, layers)
        else:
            put_medians(self._on_host(), self._present, fused, compiled, layers)
        return fused.tensors - set(fused.columns[fused.other_moments].tolist())

    def take(
        self,
        unit: Unit,
        step: int,
        optimizer: Any,
        marks: LayerMarks,
        skipped: bool,
        early: Container[int],
        known: frozenset[int] = frozenset(),
        whole: frozenset[int] = frozenset(),
        tier: FirstTier | None = None,
    ) -> None:
        """Measure the tensors of a unit after their optimizer has stepped.

        optimizer: None where it is not known. marks: of the first tier, at this step. skipped: the optimizer did
        nothing. early: identities of parameters whose gradient is no longer what it was. known, whole: tensors, by the
        index of their first layer, that `put_fused` has brought already but for their moments, or to which nothing is
        to be added. tier: the first, which takes updates that weights had to be kept for; None: these are left out.
        """
        if unit.taken >= 0:
            self._lap = step - unit.taken
        unit.taken = step
        for tensor in unit.tensors if optimizer is not None and not skipped else ():
            if id(tensor.parameter) in self._staged:
                self._moved(tensor, optimizer, early, tier)
        if unit.firsts <= whole:
            return
        for part in self._parts(unit, optimizer, early):
            fused = part.firsts <= known
            if not fused and all(dense(tensor, early) for tensor in part.tensors):
                self._gradient(part, marks)
            if not fused and optimizer is not None:
                self._update(part, optimizer, skipped, early)
            if optimizer is not None and not part.firsts <= whole:
                self._moments(part, optimizer)

    def _parts(self, unit: Unit, optimizer: Any, early: Container[int]) -> list[Unit]:
        """The unit as a whole, or tensor by tensor where not all have a gradient, or have not taken the same steps."""
        if len(unit.tensors) == 1:
            return [unit]
        together = optimizer is None or same_steps(optimizer, unit.tensors)
        if together and all(dense(tensor, early) for tensor in unit.tensors):
            return [unit]
        if unit.alone is None:
            unit.alone = [self._unit((tensor,)) for tensor in unit.tensors]
        return unit.alone

    def _gradient(self, unit: Unit, marks: LayerMarks) -> None:
        broken = {layer: marks.repaired[layer] for layer in unit.layers if layer in marks.repaired}
        repair = unit.columns.device.type != "cpu" or any(left.nonfinite for left in broken.values())
        rows = gradient_rows(unit.tensors, unit.counts, repair)
        self._put(unit, OF_GRADIENT, rows)
        for layer, left in broken.items():
            self._present[OF_GRADIENT, layer] = left.any_finite

    def _update(self, unit: Unit, optimizer: Any, skipped: bool, early: Container[int]) -> None:
        if skipped or all(t.parameter.grad is None and id(t.parameter) not in early for t in unit.tensors):
            nothing = torch.zeros(1, len(unit.columns), dtype=torch.float32, device=unit.columns.device)
            self._put(unit, OF_UPDATE, nothing)
        elif all(dense(tensor, early) for tensor in unit.tensors):
            update = intended_update(optimizer, unit.tensors)
            if update is None:
                return
            tensor = unit.tensors[0]
            scratch = self._scratch.of(tensor.parameter)
            self._put(unit, OF_UPDATE, update_rows(unit.tensors, update, scratch))

    def _moved(self, tensor: WatchedTensor, optimizer: Any, early: Container[int], tier: FirstTier | None) -> None:
        """Measure a step by the weights before it: what was rounded away, or an update that no state tells."""
        parameter = tensor.parameter
        if parameter.grad is None or parameter.grad.is_sparse:
            return
        before, scratch = self._staged[id(parameter)], self._scratch.of(parameter)
        update, usable = intended_update(optimizer, (tensor,)), dense(tensor, early)
        if update is not None and usable and parameter.dtype in LOW_PRECISION:
            self._put_tensor(tensor, OF_ROUNDING, rounding_rows(tensor, before, update, scratch))
        elif update is None and tier is not None:
            squares, products = moved_rows(tensor, before, scratch)
            put_update(tier, tensor, squares)
            if usable:
                self._put_tensor(tensor, OF_UPDATE, products)

    def _put_tensor(self, tensor: WatchedTensor, rows: slice, values: Tensor) -> None:
        place = slice(tensor.first, tensor.first + len(tensor.pieces))
        self._on(tensor.parameter.device)[rows, place].copy_(values)
        self._present[rows, place] = True

    def _moments(self, unit: Unit, optimizer: Any) -> None:
        median = not self._medians.isdisjoint(unit.layers)
        rows = moment_rows(unit.tensors, optimizer, median)
        if rows is not None:
            self._put(unit, OF_MOMENTS if median else OF_SUMS, rows)

    def _put(self, unit: Unit, rows: slice, values: Tensor) -> None:
        self._on(unit.columns.device)[rows].index_copy_(1, unit.columns, values)
        for tensor in unit.tensors:
            self._present[rows, tensor.first : tensor.first + len(tensor.pieces)] = True

    def put_forward(self, columns: slice, largest: Tensor, lost: Tensor | None) -> None:
        """Take the output of a layers' module in, one of several in this step maybe.

        largest: its largest absolute finite entry, -1 without one; lost: how many are not finite, None for 0.
        """
        sizes, counts = self._on(largest.device)[OF_FORWARD, columns].unbind(0)
        if not self._present[OF_FORWARD, columns].all():
            sizes.fill_(-1.0)
            counts.zero_()
            self._present[OF_FORWARD, columns] = True
        torch.maximum(sizes, largest, out=sizes)
        if lost is not None:
            counts += lost

    def put_outputs(self, columns: Int64, largest: Float64, lost: Float64) -> None:
        """Take in the outputs on the host of the modules of n layers, of all their forward passes. Arguments: (n,).

        largest: the largest absolute finite entry, -1 without one; lost: how many are not finite.
        """
        put_outputs(self._on_host(), self._present, columns, largest, lost)

    def _on_host(self) -> Float32:
        """The results on the host, to be written to."""
        rows: Float32 = self._on(CPU).numpy()
        return rows

    def _on(self, device: torch.device) -> Tensor:
        """The results on a device."""
        if device not in self._results:
            self._results[device] = torch.zeros(self._present.shape, dtype=torch.float32, device=device)
        return self._results[device]

    def learn(self, taken: Sequence[Unit], seconds: float) -> None:
        """Expect in future what these cost."""
        self._speed = learned(taken, seconds, self._speed)
        self._plan()

    def _plan(self) -> None:
        """Tell the budget what measuring every layer once will cost."""
        self._budget.second_lap_seconds = self._speed * sum(unit.expected for unit in self._units)

    def finish(self) -> SecondResults | None:
        """End a step: returns what was measured, None if nothing was. It stays until it is measured again."""
        self._staged.clear()
        if not self._present.any():
            return None
        present, self._present = self._present, self._nothing()
        return SecondResults(list(self._results.values()), present)
