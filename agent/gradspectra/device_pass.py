"""All sums of the layers on one CUDA device in one pass of Triton's kernels, so that every number is read once."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import torch
from gradspectra_core.records import Int64
from torch import Tensor

from gradspectra.device_build import Build
from gradspectra.device_rows import DeviceRows, Found, RowsLayout
from gradspectra.device_table import ADAM, GRADIENT_ALONE, LINEAR, NO_UPDATE, NUMBERS, WORDS, Kinds, there
from gradspectra.device_terms import DeviceTerms
from gradspectra.fused import KEPT_LAYOUTS, PLAIN, UNKNOWN
from gradspectra.inventory import Inventory, WatchedTensor
from gradspectra.second_numbers import unit_pieces
from gradspectra.shards import local
from gradspectra.updates import Coefficients, unknown_update

KINDS = frozenset((torch.float32, torch.bfloat16, torch.float16))


class DevicePass:
    """Measures what it can of the tensors of an inventory on one device; the rest is left to torch's own operations.

    results, finite: of AcceleratorRows, which the pass writes to.
    """

    def __init__(self, build: Build, inventory: Inventory, results: Tensor, finite: Tensor) -> None:
        self.build = build
        self._results = results
        self._finite = finite
        self._layouts: dict[tuple[tuple[int, Kinds], ...], RowsLayout] = {}
        self._pieces = {
            t.first: unit_pieces(t, inventory) for t in inventory.tensors if t.axis == 0 and t.pieces[-1][1]
        }

    def gradients(self, tensors: Sequence[WatchedTensor]) -> frozenset[int]:
        """Measure gradients alone; returns the tensors that were, by the index of their first layer."""
        found = [own for tensor in tensors if (own := self._gradient(tensor)) is not None]
        rows = self._measure(found, GRADIENT_ALONE, [UNKNOWN], None, frozenset())
        return frozenset() if rows is None else rows.tensors

    def take(self, tensors: Sequence[WatchedTensor], optimizer: Any, early: Container[int]) -> DeviceRows | None:
        """Measure tensors of an optimizer (None: not known) after it has stepped; None where that is none of them.

        early: identities of parameters whose gradient was measured before; of these the first tier's is left as it is.
        """
        known = optimizer is not None and unknown_update(optimizer) is None
        terms = DeviceTerms(optimizer) if known else None
        found = [own for tensor in tensors if (own := self._whole(tensor, terms)) is not None]
        coefficients = [UNKNOWN] if terms is None else terms.coefficients
        rule = NO_UPDATE if not coefficients else coefficients[0].rule
        return self._measure(found, rule, coefficients, terms, early)

    def _gradient(self, tensor: WatchedTensor) -> Found | None:
        gradient = self._numbers(tensor, tensor.parameter.grad)
        if gradient is None:
            return None
        kind = gradient.dtype
        return Found(tensor, (gradient.data_ptr(), 0, 0, 0, 0), (kind, kind, kind, kind), 0)

    def _whole(self, tensor: WatchedTensor, terms: DeviceTerms | None) -> Found | None:
        """Where everything of a tensor lies; what a rule does not take is read from the gradient, times 0."""
        gradient, weight = self._numbers(tensor, tensor.parameter.grad), self._numbers(tensor, tensor.parameter)
        if gradient is None or weight is None:
            return None
        of_update = (None, None, 0) if terms is None else terms.of(tensor)
        if of_update is None:
            return None
        kept = [gradient if own is None else self._numbers(tensor, own) for own in of_update[:2]]
        first, second = kept
        if first is None or second is None:
            return None
        steps = None if terms is None else terms.steps_there(tensor)
        if steps is not None and steps.dtype is not torch.float32:
            return None
        used = gradient, weight, first, second
        addresses = [numbers.data_ptr() for numbers in used]
        kinds = gradient.dtype, weight.dtype, first.dtype, second.dtype
        place = of_update[2]
        return Found(tensor, (*addresses[:4], 0 if steps is None else steps.data_ptr()), kinds, place)  # type: ignore[arg-type]

    def _numbers(self, tensor: WatchedTensor, numbers: Tensor | None) -> Tensor | None:
        """What is here of these numbers of a tensor, where the kernels can read them; None where torch must."""
        pieces = self._pieces.get(tensor.first)
        if numbers is None or pieces is None:
            return None
        numbers = local(numbers)
        if (
            type(numbers) in PLAIN
            and numbers.dtype in KINDS
            and numbers.device == self._results.device
            and numbers.layout is torch.strided
            and numbers.is_contiguous()
            and numbers.numel() >= tensor.pieces[-1][1]
        ):
            return numbers
        return None

    def _measure(
        self,
        found: Sequence[Found],
        rule: int,
        coefficients: Sequence[Coefficients],
        terms: DeviceTerms | None,
        early: Container[int],
    ) -> DeviceRows | None:
        if not found:
            return None
        layout = self._layout(found)
        wanted = frozenset((launch.kinds, launch.width, rule) for launch in layout.tables.launches)
        if not self.build.ready(wanted) or self.build.kernels is None:
            return None
        words = there(_words(found, layout, coefficients, terms, early), self._results.device)
        rows = torch.empty(7, len(layout.of), dtype=torch.float32, device=self._results.device)
        try:
            self.build.kernels.measure(layout.tables, words, rule, self._results, self._finite, rows)
        except Exception as error:
            self.build.fail(error)
            return None
        own = np.array([own.place for own in found])[layout.of]
        factor = np.array([its.factor for its in coefficients])[own]
        moments = np.array([its.corrections is not None for its in coefficients])[own]
        other = np.full(len(own), rule == ADAM) & ~moments
        known = rule in (ADAM, LINEAR)
        return DeviceRows(
            layout.tensors,
            layout.columns,
            layout.entries,
            known,
            factor,
            moments,
            other,
            rows,
            words,
            layout,
            self.build,
        )

    def _layout(self, found: Sequence[Found]) -> RowsLayout:
        key = tuple([(own.tensor.first, own.kinds) for own in found])
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) >= KEPT_LAYOUTS:
                self._layouts.clear()
            pieces = [self._pieces[own.tensor.first] for own in found]
            layout = self._layouts[key] = RowsLayout(found, pieces, self._results.device)
        return layout


def _words(
    found: Sequence[Found],
    layout: RowsLayout,
    coefficients: Sequence[Coefficients],
    terms: DeviceTerms | None,
    early: Container[int],
) -> Int64:
    """The table of a step: (n, WORDS)."""
    words = np.zeros((len(layout.of), WORDS), np.int64)
    addresses = np.array([own.addresses for own in found], np.int64)[layout.of]
    words[:, :4], words[:, 4] = addresses[:, :4] + layout.starts, addresses[:, 4]
    words[:, 5] = np.array([id(own.tensor.parameter) in early for own in found])[layout.of]
    exponents = [(0.0, 0.0, 0.0)] if terms is None else terms.exponents
    numbers = np.array([_numbers(*both) for both in zip(coefficients, exponents, strict=True)])
    own = np.array([own.place for own in found])[layout.of]
    told = words.view(np.float64)[:, NUMBERS:]
    told[:] = numbers[own, :8]
    counted_there = words[:, 4] != 0
    told[counted_there, 1] = numbers[own[counted_there], 8]
    return words


def _numbers(own: Coefficients, exponents: tuple[float, float, float]) -> list[float]:
    first, second = own.corrections or (1.0, 1.0)
    return [own.scale, own.epsilon, own.decay, own.factor, first, second, *exponents]
