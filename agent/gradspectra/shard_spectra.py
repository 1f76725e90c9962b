"""Spectra of sharded layers: the ranks agree on a layer at one exchange, and bring their parts of its Gram at the next.

A matrix lies in slices, by rows or by columns. The Gram matrix over the side that is not cut is the sum of the slices'
own. Where the cut side is the shorter one the slices themselves are put together: that is fewer numbers, and the
smaller Gram matrix is then made of the whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from gradspectra_core.records import Float64
from torch import Tensor

from gradspectra.budget import Budget
from gradspectra.exchange import Whole
from gradspectra.flat import OneThread, flat
from gradspectra.inventory import Inventory
from gradspectra.record import SpectrumRecord
from gradspectra.shards import local, rows_here
from gradspectra.singular import GRAM, measured, singular_values_of_gram
from gradspectra.spectra import SHORTEST_INTERVAL, Candidate, Spectra, spectrum_record

MOST_NUMBERS = 1 << 22
"""Numbers of one layer that the ranks exchange at most: 32 MiB on each device, taken when the watch is made."""
ROOM = 1 << 16
"""Numbers that small layers due at one step may take together."""
WAITS, PAYS, TOO_LARGE, OFF = range(4)
"""Whether a rank can pay for the next spectrum."""


@dataclass(frozen=True, slots=True)
class Slice:
    """What a rank has of a layer's matrix, (rows, columns) as it lies in memory: [first, last) of the side `cut`.

    gram: whether the numbers brought are a Gram matrix, else the matrix itself. numbers: how many they are.
    """

    rows: int
    columns: int
    cut: int
    first: int
    last: int

    @property
    def gram(self) -> bool:
        """Whether the side that is not cut is the shorter one."""
        return self.shape[1 - self.cut] <= self.shape[self.cut]

    @property
    def shape(self) -> tuple[int, int]:
        """Of the whole matrix."""
        return self.rows, self.columns

    @property
    def numbers(self) -> int:
        """How many numbers are exchanged."""
        return self.shape[1 - self.cut] * min(self.shape)


def slice_of(candidate: Candidate, numel: int) -> Slice:
    """The slice of a sharded layer that this rank has. numel: entries of the whole layer."""
    tensor = candidate.tensor
    rows, columns = candidate.first, numel // candidate.first
    first, last = rows_here(tensor.parameter)
    if tensor.axis:
        return Slice(rows, columns, 1, first, last)
    start = tensor.whole[candidate.layer - tensor.first][0] // columns
    each = tensor.parameter.numel() // tensor.parameter.shape[0] // columns  # of an expert's block several
    return Slice(rows, columns, 0, *(min(max(row * each - start, 0), rows) for row in (first, last)))


class ShardSpectra(Spectra):
    """Takes the spectra of sharded layers in turn. What is planned depends on nothing that differs between the ranks.

    interval, budget: as for `Spectra`. sends: whether this rank makes the records. wanted: whether there are any.
    """

    def __init__(self, inventory: Inventory, interval: int | None, budget: Budget, sends: bool, wanted: bool) -> None:
        super().__init__(inventory, interval, budget)
        self.sends = sends
        self.seconds = 0.0
        """What the numbers of the step at hand took on this rank."""
        if not wanted:
            self.candidates = []
        sized = [(c, slice_of(c, math.prod(inventory.table.layers[c.layer].shape))) for c in self.candidates]
        self.too_many = [self._names[c.layer] for c, part in sized if part.numbers > MOST_NUMBERS]
        sized = [(c, part) for c, part in sized if part.numbers <= MOST_NUMBERS]
        self.candidates = [c for c, _ in sized]
        self._slices = {c.layer: part for c, part in sized}
        self.room = max([ROOM, *(part.numbers for part in self._slices.values())]) if sized else 0
        self._waiting: list[Candidate] = []
        self._planned_to = 0
        self._off = False
        self._early: dict[int, Tensor] = {}
        self._plan()

    def planned(self, count: int) -> list[Candidate]:
        """The layers whose spectra the exchange at the count-th step carries."""
        return self._fitting(self._wanted(count))

    def numbers_of(self, planned: Sequence[Candidate]) -> int:
        """How many numbers their spectra take in an exchange."""
        return sum(self._slices[c.layer].numbers for c in planned)

    def _wanted(self, count: int) -> list[Candidate]:
        if self._off or self._fixed is None:
            return self._waiting if not self._off else []
        offsets = [(c, i * self._fixed // len(self.candidates)) for i, c in enumerate(self.candidates)]
        come = [c for c, at in offsets if (count + at) // self._fixed > (self._planned_to + at) // self._fixed]
        return self._waiting + [c for c in come if c not in self._waiting]

    def _fitting(self, wanted: list[Candidate]) -> list[Candidate]:
        totals = np.cumsum([self._slices[c.layer].numbers for c in wanted])
        return wanted[: int(np.searchsorted(totals, self.room, side="right"))]

    def agree(self, count: int, ready: Float64) -> None:
        """The exchange at the count-th step is over. ready: (R,) what each rank said of the next spectrum."""
        wanted = self._wanted(count)
        self._waiting = wanted[len(self._fitting(wanted)) :]
        self._planned_to = count
        self._early.clear()
        self.seconds = 0.0
        self._off |= bool((ready == OFF).any())
        if self._fixed is not None or self._waiting or not self.candidates:
            return
        candidate = self.candidates[self._next]
        pays, too_large = bool((ready == PAYS).all()), bool((ready == TOO_LARGE).any())
        if pays:
            self._waiting = [candidate]
            self.too_large.pop(self._names[candidate.layer], None)
        if too_large:
            self._refuse(candidate, self._cost(candidate))
        if pays or too_large:
            self._next = (self._next + 1) % len(self.candidates)

    def ready(self, count: int) -> int:
        """What this rank says of the next spectrum at the count-th step."""
        if self._fixed is not None or not self.candidates or self._waiting:
            return WAITS
        candidate = self.candidates[self._next]
        cost = self._cost(candidate)
        if self._budget.too_large(cost):
            return TOO_LARGE
        early = candidate.taken >= 0 and count - candidate.taken < SHORTEST_INTERVAL
        return WAITS if early or not self._budget.pays(cost) else PAYS

    def take_early(self, planned: Sequence[Candidate], parameters: Container[int]) -> None:
        """Take this rank's numbers of these parameters now, before their gradients are changed."""
        for candidate in planned:
            if id(candidate.tensor.parameter) in parameters and candidate.layer not in self._early:
                self._early[candidate.layer] = self._numbers(candidate)

    def forget_early(self) -> None:
        """What was taken early was of a gradient that the step does not take."""
        self._early.clear()

    def numbers(self, planned: Sequence[Candidate]) -> Tensor:
        """What this rank brings to the spectra of these layers: (N,) float64."""
        began = time.perf_counter()
        with OneThread(), torch.no_grad():
            early = self._early
            found = [early[c.layer] if c.layer in early else self._numbers(c) for c in planned]
        self.seconds = time.perf_counter() - began
        return torch.cat(found)

    def _numbers(self, candidate: Candidate) -> Tensor:
        part, gradient = self._slices[candidate.layer], candidate.tensor.parameter.grad
        device = local(candidate.tensor.parameter).device
        if gradient is None:
            return torch.zeros(part.numbers, dtype=torch.float64, device=device)
        start, stop = candidate.piece
        vector = flat(local(gradient), candidate.tensor.axis)[start:stop]
        matrix = vector.view(-1, part.columns) if part.cut == 0 else vector.view(part.rows, part.last - part.first)
        matrix = matrix.double()
        if part.gram:
            return (matrix.t() @ matrix if part.cut == 0 else matrix @ matrix.t()).view(-1)
        whole = torch.zeros(part.shape, dtype=torch.float64, device=device)
        whole.narrow(part.cut, part.first, part.last - part.first).copy_(matrix)
        return whole.view(-1)

    def adopt(self, planned: Sequence[Candidate], whole: Whole, count: int) -> list[SpectrumRecord]:
        """The spectra of these layers from the numbers of all ranks; [] on a rank that does not send.

        Learns what they cost: the work on this rank and their part of the all-reduce.
        """
        began = time.perf_counter()
        records, first = [], 0
        for candidate in planned:
            part = self._slices[candidate.layer]
            last = first + part.numbers
            if self.sends and whole.numbers is not None:
                records.append(spectrum_record(candidate, *_values(part, whole.numbers[first:last])))
            if candidate.taken >= 0:
                self._lap = count - candidate.taken
            candidate.taken, first = count, last
        seconds = self.seconds + whole.seconds + time.perf_counter() - began
        expected = sum(candidate.expected for candidate in planned) or 1.0
        for candidate in planned:
            self._learn(candidate, seconds * candidate.expected / expected)
        return [record for record in records if record is not None]


def _values(part: Slice, numbers: Tensor) -> tuple[Float64, str]:
    """Singular values, and their method, from the numbers of all ranks."""
    with OneThread():
        if not part.gram:
            return measured(numbers.view(part.shape), GRAM)
        side = part.shape[1 - part.cut]
        return singular_values_of_gram(numbers.view(side, side)), GRAM
