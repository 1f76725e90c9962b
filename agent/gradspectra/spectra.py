"""Spectra: the singular values of one layer's gradient, weights or update at a time, in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gradspectra_core.identity import matrix_shape
from gradspectra_core.records import Float64
from gradspectra_core.spectrum import aggregates, drawn_indices
from torch import Tensor

from gradspectra.adapters import core_of_product, right_factors
from gradspectra.beside import Beside, Work
from gradspectra.budget import Budget
from gradspectra.doubt import Doubt
from gradspectra.flat import flat
from gradspectra.inventory import Inventory, WatchedTensor
from gradspectra.record import GRADIENT, WEIGHT, SpectrumRecord
from gradspectra.singular import GRAM, SVD, gram_of, measured, resolved
from gradspectra.updates import intended_update

SHORTEST_INTERVAL = 20
"""Steps between two spectra of a layer that spectra="auto" keeps at least, however cheap they are."""
INTERVAL_AT_ANY_COST = 100
"""Steps between two spectra of a layer with spectra="auto" and no budget."""
BESIDE_SECONDS = 2e-3
"""Within a budget, what takes longer on a CPU is done beside the training; to hand less over would cost as much."""

LOOKS = 32
"""Layers that are passed over in one step at most, where their spectra are too large: each look takes its time too."""
PLANNED = 256
"""Spectra of which, at most, what all of them cost is added up anew with each that was taken."""


@dataclass(slots=True)
class Candidate:
    """A layer that has a spectrum.

    rows, columns: its matrix; first: rows of its piece as it lies in memory. of: one of SPECTRUM_OF. method: what its
    last spectrum would have come by. doubt: of what it is expected to cost. right: by what the tensor is
    multiplied, where the spectrum is that of a product.
    """

    layer: int
    tensor: WatchedTensor
    piece: tuple[int, int]
    rows: int
    columns: int
    first: int
    expected: float
    of: str = GRADIENT
    taken: int = -1
    method: str = GRAM
    doubt: Doubt = field(default_factory=Doubt)
    right: WatchedTensor | None = None


@dataclass(slots=True)
class PendingSpectrum:
    """The spectrum of a layer on an accelerator, whose Gram matrix is still there. seconds: that it took so far."""

    candidate: Candidate
    gram: Tensor
    seconds: float
    learn: Callable[[Candidate, float], None]

    def record(self, gram: Float64) -> SpectrumRecord | None:
        """The spectrum, in whatever thread, from the Gram matrix on the host.

        By numpy: torch's number of threads is one for all threads, and belongs to the training.
        """
        began = time.perf_counter()
        record = None
        if np.isfinite(gram.trace()):
            values: Float64 = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))[::-1]
            record = spectrum_record(self.candidate, values, GRAM)
        self.learn(self.candidate, self.seconds + time.perf_counter() - began)
        return record


@dataclass(slots=True)
class SpectrumBeside:
    """The spectrum of a layer on a CPU, whose singular values are taken beside the training.

    step: at which it was measured.
    """

    candidate: Candidate
    work: Work
    step: int
    learn: Callable[[Candidate, float], None]

    def record(self) -> SpectrumRecord | None:
        """The spectrum, in whatever thread, once the work is done."""
        values = self.work.values
        if values is None:
            return None
        self.candidate.method = GRAM if resolved(values) else SVD
        record = spectrum_record(self.candidate, values, self.work.method)
        if record is not None:
            self.learn(self.candidate, self.work.seconds)
        return record


class Spectra:
    """Takes the layers' spectra in turn.

    interval: steps between two spectra of one layer; None lets the budget decide. beside: takes the singular values of
    what lies on a CPU and is dear, where a budget decides; None: they are all taken at once. of: some of SPECTRUM_OF.
    """

    def __init__(
        self,
        inventory: Inventory,
        interval: int | None,
        budget: Budget,
        beside: Beside | None = None,
        of: Sequence[str] = (GRADIENT,),
    ) -> None:
        self._budget = budget
        self._beside = beside if interval is None and budget.share is not None else None
        self._threads = torch.get_num_threads()
        self._fixed = interval
        if interval is None and budget.share is None:
            self._fixed = INTERVAL_AT_ANY_COST
        self._speed = 1.0
        self.candidates: list[Candidate] = []
        self.too_large: dict[str, float] = {}
        self.without: list[str] = []
        self._next = self._learned = 0
        self._names = inventory.table.names
        for tensor in inventory.tensors:
            for index, piece in enumerate(tensor.pieces, tensor.first):
                layer = inventory.table.layers[index]
                shape = matrix_shape(layer)
                if shape is None or min(shape) < 2 or tensor.parameter.is_complex():
                    continue
                if shape[0] * shape[1] != math.prod(layer.shape) or (tensor.axis and len(layer.shape) > 2):
                    self.without.append(layer.name)
                    continue
                cost = expected_seconds(*shape)
                first = shape[tensor.axis]
                self.candidates += [Candidate(index, tensor, piece, *shape, first, cost, each) for each in of]
        self._join(right_factors(inventory.tensors))
        self._plan()

    def _join(self, rights: dict[str, WatchedTensor]) -> None:
        """Of the weights of adapters there is one spectrum, of their product, in the place of the left factor's own."""
        joined = {right.name for right in rights.values()}
        self.candidates = [c for c in self.candidates if c.of != WEIGHT or c.tensor.name not in joined]
        for candidate in self.candidates:
            if candidate.of == WEIGHT and (right := rights.get(candidate.tensor.name)) is not None:
                candidate.right, candidate.columns = right, right.parameter.shape[1]

    def due(self, step: int) -> list[Candidate]:
        """The layers whose spectra are to be taken at this step; with "auto" at most one, if the budget pays for it."""
        count = len(self.candidates)
        if not count:
            return []
        if self._fixed is not None:
            return [c for i, c in enumerate(self.candidates) if (step + i * self._fixed // count) % self._fixed == 0]
        self._threads = max(torch.get_num_threads(), 1)
        for _ in range(min(count, LOOKS)):
            candidate = self.candidates[self._next]
            cost = self._charge(candidate)
            if self._budget.too_large(cost):
                self._refuse(candidate, cost)
                self._next = (self._next + 1) % count
                continue
            early = candidate.taken >= 0 and step - candidate.taken < SHORTEST_INTERVAL
            if early or not self._budget.pays(cost) or self._waits(candidate):
                return []
            self.too_large.pop(self._names[candidate.layer], None)
            self._next = (self._next + 1) % count
            return [candidate]
        return []

    def _refuse(self, candidate: Candidate, cost: float) -> None:
        """A spectrum is left out since it would take too much of a step."""
        self.too_large[self._names[candidate.layer]] = cost
        candidate.doubt.refused(candidate.taken >= 0)

    def _cost(self, candidate: Candidate) -> float:
        """Seconds that a spectrum is expected to take of the thread that takes it."""
        return candidate.expected * self._speed * candidate.doubt.part

    def _charge(self, candidate: Candidate) -> float:
        """Seconds that a spectrum is expected to take of the training's: beside it, what one of its threads loses."""
        cost, beside, factors = self._cost(candidate), self._beside_for(candidate), self._budget.factors
        return cost * factors.spectra if beside is None else cost * beside.lost / self._threads * factors.beside

    def _beside_for(self, candidate: Candidate) -> Beside | None:
        """Who takes the singular values of a layer beside the training; None where they are taken at once."""
        dear = self._cost(candidate) > BESIDE_SECONDS
        return self._beside if dear and candidate.tensor.parameter.device.type == "cpu" else None

    def _waits(self, candidate: Candidate) -> bool:
        beside = self._beside_for(candidate)
        return beside is not None and beside.busy

    def interval(self) -> int | None:
        """Steps between two spectra of a layer as they come at present; None before they have come twice."""
        if self._fixed is not None:
            return self._fixed
        return self._lap if self._lap > 0 else None

    _lap = 0

    def take(
        self, candidate: Candidate, step: int, optimizer: Any = None
    ) -> SpectrumRecord | PendingSpectrum | SpectrumBeside | None:
        """Measure the spectrum of a layer's gradient as it is now, of its weights, or of the update that was just made.

        None where there is no gradient or no known update, or one that is not finite or all zero. Of a matrix on an
        accelerator the Gram matrix is made there; its eigenvalues are for the host, since there they would make the
        host wait. Of one on a CPU that is dear a copy is made. optimizer: that of the layer, None where not known.
        """
        if candidate.taken >= 0:
            self._lap = step - candidate.taken
        candidate.taken = step
        began = time.perf_counter()
        matrix = _matrix(candidate, optimizer)
        if matrix is None:
            return None
        if matrix.device.type != "cpu":
            gram = gram_of(matrix)
            return PendingSpectrum(candidate, gram, time.perf_counter() - began, self._learn)
        if (beside := self._beside_for(candidate)) is not None:
            work = beside.give(matrix.clone(), candidate.method)
            return SpectrumBeside(candidate, work, step, self._learn)
        values, method = measured(matrix, candidate.method)
        candidate.method = GRAM if resolved(values) else SVD
        record = spectrum_record(candidate, values, method)
        if record is not None:
            self._learn(candidate, time.perf_counter() - began)
        return record

    def _learn(self, candidate: Candidate, seconds: float) -> None:
        """Expect of this layer what it cost, and of the rest in proportion; one slow time does not say much."""
        if candidate.doubt.part < 1.0:
            candidate.expected = candidate.doubt.settled(candidate.expected, seconds / self._speed)
        else:
            ratio = seconds / max(candidate.expected * self._speed, 1e-9)
            candidate.expected *= min(max(ratio, 0.7), 1.5) ** 0.5
            self._speed *= min(max(ratio, 0.7), 1.5) ** 0.1
        self._learned += 1
        if self._learned % (1 + len(self.candidates) // PLANNED) == 0:
            self._plan()

    def _plan(self) -> None:
        """Tell the budget what taking every spectrum once will cost."""
        self._budget.lap_seconds = sum(self._charge(candidate) for candidate in self.candidates)


def _matrix(candidate: Candidate, optimizer: Any) -> Tensor | None:
    """What the spectrum is of, in two dimensions; None where it is not there or not known."""
    tensor, (start, stop) = candidate.tensor, candidate.piece
    parameter, gradient = tensor.parameter, tensor.parameter.grad
    if candidate.right is not None:
        return core_of_product(parameter, candidate.right.parameter)
    if candidate.of == WEIGHT:
        numbers = flat(parameter.detach(), tensor.axis)[start:stop]
    elif gradient is None or gradient.is_sparse:
        return None
    elif candidate.of == GRADIENT:
        numbers = flat(gradient, tensor.axis)[start:stop]
    else:
        update = None if optimizer is None else intended_update(optimizer, [tensor])
        if update is None:
            return None
        direction, factor = update
        wide = torch.promote_types(parameter.dtype, torch.float32)
        numbers = direction(start, stop, parameter.new_empty(stop - start, dtype=wide)) * factor
    return numbers.view(candidate.first, -1)


def spectrum_record(candidate: Candidate, values: Float64, method: str) -> SpectrumRecord | None:
    """What is kept of a layer's singular values, (m,), the largest first; None where they say nothing."""
    if not np.isfinite(values[0]) or values[0] == 0:
        return None
    index = drawn_indices(len(values))
    return SpectrumRecord(
        candidate.layer,
        candidate.of,
        method,
        candidate.rows,
        candidate.columns,
        aggregates(values),
        index,
        values[index].astype(np.float32),
    )


def expected_seconds(rows: int, columns: int) -> float:
    """A first guess of what a spectrum costs on a few cores, until it was seen."""
    small, large = sorted((rows, columns))
    return 2e-4 + small**2 * large / 2e10 + small**3 / 6e9
