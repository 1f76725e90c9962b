"""All sums of float32 layers on a CPU in one compiled pass, so that every number is read from memory once."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gradspectra_core.records import Bool, Float64, Int64
from torch import Tensor, nn

from gradspectra.compiling import LAYER, NO_UPDATE, ROW, VECTOR, Compiled, compilation, switched_off
from gradspectra.inventory import Inventory, WatchedTensor
from gradspectra.second_numbers import units
from gradspectra.settings import fused_wanted
from gradspectra.updates import Terms, fused_terms, unknown_update

CPU = torch.device("cpu")
BYTES = 4
"""Of a number in float32."""


@dataclass(slots=True)
class FusedRows:
    """What one pass has measured of n layers.

    tensors: by the index of their first layer. columns: (n,) the layers. entries: (n,) how many numbers each has.
    rows: (n, len(ROW)); `row` gives one of its columns. update: (n,) whether the direction is that of a known update;
    factor: (n,) ΔW = −factor·d. moments: (n,) whether first_sq and second_sum are Adam's, and (n, 2) corrections what
    makes them those of m̂ and v̂.
    """

    tensors: frozenset[int]
    columns: Int64
    entries: Int64
    rows: Float64
    update: Bool
    factor: Float64
    moments: Bool
    corrections: Float64

    def row(self, name: str) -> Float64:
        """One number of each layer, (n,)."""
        return self.rows[:, ROW.index(name)]


class FusedPass:
    """Measures what it can of the tensors of one inventory; the rest is left to torch's own operations.

    Raises ValueError for a wrong GRADSPECTRA_FUSED.
    """

    def __init__(self, inventory: Inventory) -> None:
        self._compilation = compilation() if fused_wanted() else switched_off()
        self._pieces: dict[int, list[tuple[int, int, int]]] = {}
        for tensor in inventory.tensors:
            if fits(tensor):
                self._pieces[tensor.first] = _pieces(tensor, inventory)

    @property
    def compiled(self) -> Compiled | None:
        """The compiled pass; None while it is being compiled, or where it cannot be had."""
        done = self._compilation.done() and self._compilation.exception() is None
        return self._compilation.result() if done else None

    @property
    def state(self) -> str:
        """In words: compiled, being compiled, or why it cannot be had."""
        if not self._compilation.done():
            return "being compiled"
        return "compiled" if self.compiled is not None else f"not compiled: {self._compilation.exception()}"

    def take(self, tensors: Sequence[WatchedTensor], optimizer: Any, early: Container[int] = ()) -> FusedRows | None:
        """Measure tensors of an optimizer (None: not known) after it has stepped; None where that is none of them.

        early: identities of parameters whose gradient is no longer what it was.
        """
        compiled = self.compiled
        if compiled is None or not self._pieces:
            return None
        layers: list[tuple[Any, ...]] = []
        columns: list[int] = []
        marks: list[tuple[bool, float, bool, float, float]] = []
        taken: list[int] = []
        known = optimizer is not None and unknown_update(optimizer) is None
        for tensor in tensors:
            pieces, parameter = self._pieces.get(tensor.first), tensor.parameter
            if pieces is None or id(parameter) in early:
                continue
            entries = tensor.pieces[-1][1]
            if not (_in_order(parameter, entries) and _in_order(parameter.grad, entries)):
                continue
            terms = fused_terms(optimizer, tensor) if known else None
            if known and (terms is None or not _alike(terms, entries)):
                continue
            taken.append(tensor.first)
            layers += _layers(tensor, pieces, terms)
            columns += range(tensor.first, tensor.first + len(pieces))
            marks += [_marks(terms)] * len(pieces)
        if not layers:
            return None
        table, rows = np.array(layers, LAYER), np.empty((len(layers), len(ROW)))
        compiled.measure(len(layers), table.ctypes.data, rows.ctypes.data)
        of_update = np.array(marks)
        return FusedRows(
            frozenset(taken),
            np.array(columns, np.int64),
            table["units"] * table["per_unit"],
            rows,
            of_update[:, 0] > 0,
            of_update[:, 1],
            of_update[:, 2] > 0,
            of_update[:, 3:],
        )

    def squares(self, held: Sequence[tuple[WatchedTensor, Tensor]]) -> tuple[Float64, list[int], list[int]] | None:
        """Sums of squares of gradients that were not added to `.grad` yet, n layers in all; None without a pass.

        Returns the sums (n,), the layer of each, and which of the gradients are left to torch.
        """
        compiled = self.compiled
        if compiled is None:
            return None
        vectors: list[tuple[int, int]] = []
        columns: list[int] = []
        left: list[int] = []
        for index, (tensor, gradient) in enumerate(held):
            if tensor.first not in self._pieces or not _in_order(gradient, tensor.pieces[-1][1]):
                left.append(index)
                continue
            address = gradient.data_ptr()
            vectors += [(address + BYTES * start, stop - start) for start, stop in tensor.pieces]
            columns += range(tensor.first, tensor.first + len(tensor.pieces))
        table, sums = np.array(vectors, VECTOR), np.empty(len(vectors))
        compiled.squares(len(vectors), table.ctypes.data, sums.ctypes.data)
        return sums, columns, left


def fits(tensor: WatchedTensor) -> bool:
    """Whether a tensor is of the kind that is measured in C, as long as its gradient and state are so too."""
    return tensor.axis == 0 and _in_order(tensor.parameter, 1)


def _pieces(tensor: WatchedTensor, inventory: Inventory) -> list[tuple[int, int, int]]:
    """Per layer of a tensor: its first number, its output units, and the numbers of each."""
    found = []
    for layer, (start, stop) in enumerate(tensor.pieces, tensor.first):
        rows = units(inventory.table.layers[layer].shape, tensor.axis)
        found.append((start, rows, (stop - start) // rows))
    return found


def _in_order(numbers: Tensor | None, entries: int) -> bool:
    """Whether these are so many float32 numbers on the host, at least, that lie one after another."""
    return (
        numbers is not None
        and type(numbers) in (Tensor, nn.Parameter)
        and numbers.dtype is torch.float32
        and numbers.layout is torch.strided
        and numbers.is_cpu
        and numbers.is_contiguous()
        and numbers.numel() >= entries
    )


def _alike(terms: Terms, entries: int) -> bool:
    """Whether what the optimizer keeps lies in memory as its parameter does."""
    first, second = terms.first, terms.second
    return (first is None or _in_order(first, entries)) and (second is None or _in_order(second, entries))


def _layers(
    tensor: WatchedTensor, pieces: Sequence[tuple[int, int, int]], terms: Terms | None
) -> list[tuple[Any, ...]]:
    """Rows of LAYER."""
    parameter = tensor.parameter
    assert parameter.grad is not None
    gradient = parameter.grad.data_ptr()
    first = second = gradient  # to be read, and multiplied by 0, where a rule takes none
    rule, scale, epsilon, decay = NO_UPDATE, 0.0, 0.0, 0.0
    if terms is not None:
        rule, scale, epsilon, decay = terms.rule, terms.scale, terms.epsilon, terms.decay
        first = gradient if terms.first is None else terms.first.data_ptr()
        second = gradient if terms.second is None else terms.second.data_ptr()
    addresses = (gradient, parameter.data_ptr(), first, second)
    return [
        (*(address + BYTES * start for address in addresses), rows, per_row, rule, scale, epsilon, decay)
        for start, rows, per_row in pieces
    ]


def _marks(terms: Terms | None) -> tuple[bool, float, bool, float, float]:
    if terms is None:
        return False, 1.0, False, 1.0, 1.0
    corrections = terms.corrections
    return True, terms.factor, corrections is not None, *(corrections or (1.0, 1.0))
