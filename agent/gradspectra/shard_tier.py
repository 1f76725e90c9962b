"""The second tier of sharded layers: whose turn it is, as the ranks agree on, and what the shards of this rank bring.

The ranks agree one exchange ahead, as for spectra: each says of how many layers its budget pays for, and the fewest are
measured. What a turn is depends on nothing that differs between the ranks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gradspectra_core.records import Bool, Float64
from torch import Tensor

from gradspectra.budget import LARGEST_PIECE, Budget
from gradspectra.device_rows import DeviceRows
from gradspectra.flat import flat
from gradspectra.fused import FusedRows
from gradspectra.inventory import Inventory, WatchedTensor
from gradspectra.layer_marks import LayerMarks
from gradspectra.second_numbers import OF_FORWARD, OF_GRADIENT, OF_MEDIAN, OF_MOMENTS, OF_SUMS, OF_UPDATE, ROWS
from gradspectra.second_tier import SecondResults, SecondTier
from gradspectra.second_units import Unit, expected_seconds
from gradspectra.shard_layout import GROUPS, SEEN, Layout, packed, sample_here, sample_size, unpacked
from gradspectra.shards import local
from gradspectra.staging import LOW_PRECISION, STAGED
from gradspectra.turns import in_turn
from gradspectra.updates import adam_moments, betas

EXCHANGED = 1 << 16
"""Second moments that ranks exchange at most for medians, in turn: 16 layers of the largest sample."""
STOPPED, OVERSIZED = -2, -1
"""What a rank says in place of a number of turns: that it measures no more, that the next layer is too large."""
ACT_MAX, ZERO_ROWS = ROWS.index("act_max"), ROWS.index("grad_zero_rows")


class ShardTier(SecondTier):
    """Measures the shards of this rank; `share` is what it brings to an exchange, `adopt` takes what all have brought.

    optimizer: that of all tensors. ranks: how many shards there are; rank: which is here.
    """

    def __init__(self, inventory: Inventory, budget: Budget, optimizer: Any, rank: int, ranks: int) -> None:
        super().__init__(inventory, budget)
        self._optimizer = optimizer
        self._rank, self._ranks = rank, ranks
        self._table = inventory.table
        self._tensor_of = [tensor for tensor in inventory.tensors for _ in tensor.pieces]
        self._device = local(self._tensor_of[0].parameter).device
        self._empty = np.array([stop == start for tensor in inventory.tensors for start, stop in tensor.pieces])
        self._here = {unit.tensors[0].first: self._parts_here(unit) for unit in self._units}
        for unit in self._units:
            unit.expected = expected_seconds(local(unit.tensors[0].parameter).numel())
        self._plan()
        self.alarmed = False
        """Whether any rank has said that its loss was not finite."""
        self._stopped = False
        self._last_sampled = -1
        self._to_stage: list[WatchedTensor] = []
        self._last_staged = -1
        self._planned = list(self._units) if budget.share is None else []
        self._whole: SecondResults | None = None
        everything = range(len(inventory.table))
        sizes = [self._sample_size(layer) for layer in everything] if betas([optimizer]) else []
        self.room = self._laid_out(everything, ()).numbers + min(sum(sizes), max([EXCHANGED, *sizes]))
        """Numbers that an exchange carries at most."""
        self._agree_on_rest()

    def _parts_here(self, unit: Unit) -> list[Unit]:
        """The unit's layers of which this rank has something, neighbours together."""
        (tensor,) = unit.tensors
        runs: list[list[int]] = []
        for index, (start, stop) in enumerate(tensor.pieces):
            if start < stop:
                if not runs or runs[-1][-1] != index - 1:
                    runs.append([])
                runs[-1].append(index)
        return [self._part(tensor, run) for run in runs]

    def _part(self, tensor: WatchedTensor, run: Sequence[int]) -> Unit:
        pieces = tuple(tensor.pieces[index] for index in run)
        first = tensor.first + run[0]
        whole = tuple(tensor.whole[index] for index in run)
        part = self._unit((replace(tensor, first=first, pieces=pieces, whole=whole),))
        if tensor.axis == 0:
            sizes = zip(pieces, whole, part.counts, strict=True)
            part.counts = tuple(
                (last - first) * count // (stop - start) for (first, last), (start, stop), count in sizes
            )
        return part

    def due(self) -> list[Unit]:
        """The units whose turn it is at the recorded step that comes."""
        return self._planned

    @property
    def every(self) -> list[Unit]:
        """All units."""
        return self._units

    def ready(self) -> int:
        """How many turns this rank can pay for at the recorded step after this one, or OVERSIZED."""
        self._credit += self._budget.second_seconds()
        self._credit = credit = min(self._credit, LARGEST_PIECE * self._budget.step_seconds)
        for number in range(len(self._units)):
            cost = self._turn(number).cost(self._speed)
            if self._budget.too_large(cost):
                return number or OVERSIZED
            credit -= cost
            if credit < 0:
                return number
        return len(self._units)

    def _turn(self, number: int) -> Unit:
        return self._units[(self._next + number) % len(self._units)]

    def agree(self, ready: Float64, alarmed: bool) -> None:
        """An exchange is over. ready: (R,) what each rank said of its turns; alarmed: whether any raised an alarm."""
        self._present = self._nothing()
        self._staged.clear()
        self._stopped |= bool((ready == STOPPED).any())
        self.alarmed = alarmed and not self._stopped
        turns = 0
        if self._stopped:
            self._planned = []
        elif self._budget.share is not None and self._units:
            if (ready == OVERSIZED).any():
                unit = self._turn(0)
                self._refuse(unit)
                self._next = (self._next + 1) % len(self._units)
            else:
                turns = int(ready.min())
            self._planned = [self._turn(number) for number in range(turns)]
            for unit in self._planned:
                self.too_large.pop(unit.tensors[0].name, None)
            self._next = (self._next + turns) % len(self._units)
            self._credit -= sum(unit.cost(self._speed) for unit in self._planned)
        self._agree_on_rest()

    def _agree_on_rest(self) -> None:
        """Choose what of the planned layers is staged, and of which a median is taken."""
        tensors = [unit.tensors[0] for unit in self._planned]
        rounded = [tensor for tensor in tensors if tensor.parameter.dtype in LOW_PRECISION]
        self._to_stage = in_turn(rounded, self._last_staged, _first, _entries, STAGED)
        if self._to_stage:
            self._last_staged = self._to_stage[-1].first
        planned = [layer for tensor in tensors for layer in range(tensor.first, tensor.first + len(tensor.pieces))]
        sampled: list[int] = []
        if betas([self._optimizer]):
            sampled = in_turn(planned, self._last_sampled, int, self._sample_size, EXCHANGED)
        if sampled:
            self._last_sampled = sampled[-1]
        self.layout = self._laid_out(range(len(self._table)) if self.alarmed else planned, sampled)
        """How the next exchange carries what is measured."""
        self.numbers = self.layout.numbers
        """How many numbers it carries."""

    def _sample_size(self, layer: int) -> int:
        start, stop = self._tensor_of[layer].whole[layer - self._tensor_of[layer].first]
        return sample_size(stop - start)

    def _laid_out(self, columns: Sequence[int], sampled: Collection[int]) -> Layout:
        shared = [self._table.layers[c].shape[axis] if (axis := self._tensor_of[c].axis) else 0 for c in columns]
        samples = [self._sample_size(column) if column in sampled else 0 for column in columns]
        return Layout(tuple(columns), self._ranks, tuple(shared), tuple(samples))

    def stage(self, due: Sequence[Unit]) -> None:
        """Keep the shards of a few tensors as they are before the optimizer steps: those that all ranks keep."""
        own = {unit.tensors[0].first for unit in due}
        for tensor in self._to_stage:
            if tensor.first in own:
                self._staged[id(tensor.parameter)] = flat(local(tensor.parameter).detach(), tensor.axis).clone()

    def take_shards(
        self, step: int, marks: LayerMarks, early: Collection[int], fused: FusedRows | DeviceRows | None = None
    ) -> None:
        """Measure what this rank has of the layers whose turn it is. marks, early: as for `take`.

        fused: what came with the first tier already, if that knew the optimizer.
        """
        broken = {layer: replace(left, any_finite=True) for layer, left in marks.repaired.items()}
        marks = LayerMarks(marks.gradient, marks.update, marks.factor, broken)  # another rank may have a finite entry
        known = whole = frozenset[int]()
        if fused is not None:
            known, whole = fused.tensors, self._put_shards(fused)
        for unit in self._planned:
            for part in self._here[unit.tensors[0].first]:
                of_known, of_whole = (part.firsts if unit.firsts <= own else frozenset[int]() for own in (known, whole))
                self.take(part, step, self._optimizer, marks, False, early, of_known, of_whole)

    def _put_shards(self, fused: FusedRows | DeviceRows) -> frozenset[int]:
        """Take over what came with the first tier; returns the tensors of which nothing is left to be measured."""
        self.put_fused(fused)
        here = fused.entries > 0
        self._present[OF_GRADIENT, fused.columns] = here  # another rank may have a finite entry where this has none
        self._present[OF_UPDATE.start : OF_SUMS.stop, fused.columns] &= here
        return fused.tensors - set(fused.columns[fused.other_moments].tolist())

    def share(self, armed: Collection[int]) -> Tensor:
        """What this rank brings: (numbers,) float64 where its shards lie. armed: layers whose outputs were followed."""
        columns, present = list(self.layout.columns), self._present[:, list(self.layout.columns)]
        vector = torch.zeros(self.numbers, dtype=torch.float64, device=self._device)
        rows, slots, counts, samples = self.layout.split(vector)
        measured = torch.from_numpy(present).to(self._device)
        for results in self._results.values():
            rows[: len(ROWS)] += torch.where(measured, results.to(self._device)[:, columns], 0.0)
        brought = np.stack([self._empty[columns] | present[group.start] for group in GROUPS])
        brought[GROUPS.index(OF_FORWARD)] = [column in armed for column in columns]
        rows[len(ROWS) : SEEN] = torch.from_numpy(brought).to(self._device)
        rows[SEEN] = measured[OF_FORWARD.start]
        slots[self._rank] = torch.where(measured[OF_FORWARD.start], rows[ACT_MAX], -1.0)
        for at, column in enumerate(columns):
            if present[OF_GRADIENT.start, at] and len(counts[at]):
                counts[at].copy_(packed(self._units_used(column), self._ranks))
            if present[OF_MOMENTS.start, at] and len(samples[at]):
                self._sample_into(samples[at], column)
        return vector

    def _place(self, layer: int) -> tuple[WatchedTensor, int, slice]:
        tensor = self._tensor_of[layer]
        piece = layer - tensor.first
        return tensor, piece, slice(*tensor.pieces[piece])

    def _units_used(self, layer: int) -> Tensor:
        """Which output units of a layer have anything but 0 in what is here of their gradient."""
        tensor, _, here = self._place(layer)
        gradient = tensor.parameter.grad
        assert gradient is not None
        numbers = flat(local(gradient), tensor.axis)[here]
        return (numbers.view(self._table.layers[layer].shape[tensor.axis], -1) != 0).any(1)

    def _sample_into(self, sample: Tensor, layer: int) -> None:
        """Write what is here of a layer's sample of v̂."""
        tensor, piece, here = self._place(layer)
        moments = adam_moments(self._optimizer, (tensor,))
        if moments is not None:
            _, second, _, of_second = moments
            places, entries = sample_here(tensor, piece, self._table.layers[layer].shape)
            sample[places.to(self._device)] = second[here][entries.to(self._device)].double() / of_second

    def adopt(self, numbers: Float64, marks: LayerMarks) -> None:
        """Take what all ranks have brought. numbers: (numbers,); marks: of the first tier, over all ranks."""
        layout, columns = self.layout, list(self.layout.columns)
        rows, slots, counts, samples = layout.split(torch.from_numpy(numbers))
        values, present = rows.new_zeros(len(ROWS), len(self._table)), self._nothing()
        values[:, columns] = rows[: len(ROWS)]
        values[ACT_MAX, columns] = slots.amax(0)
        by_all = (rows[len(ROWS) : SEEN] == self._ranks).numpy()
        for group, found in zip(GROUPS, by_all, strict=True):
            present[group, columns] = found
        present[OF_FORWARD, columns] &= (rows[SEEN] > 0).numpy()
        present[OF_MEDIAN, columns] &= [size > 0 for size in layout.samples]
        for column, shared, count, sample in zip(columns, layout.shared, counts, samples, strict=True):
            if shared:
                values[ZERO_ROWS, column] = (unpacked(count, shared, self._ranks) == 0).sum()
            if len(sample):
                values[OF_MEDIAN, column] = sample.median().sqrt()
        _leave_out_lost(present, marks)
        self._whole = SecondResults([values], present)

    def finish(self) -> SecondResults | None:
        """End a step: returns what was adopted, None if nothing was."""
        whole, self._whole = self._whole, None
        return whole


def _leave_out_lost(present: Bool, marks: LayerMarks) -> None:
    for layer, left in marks.repaired.items():
        present[OF_GRADIENT, layer] &= left.any_finite


def _first(tensor: WatchedTensor) -> int:
    return tensor.first


def _entries(tensor: WatchedTensor) -> int:
    return tensor.parameter.numel()
