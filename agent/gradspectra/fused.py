"""All sums of float32 layers on a CPU in one pass, so that every number is read from memory once.

The pass is compiled; where it is not, and all sums are wanted at each step, it is made of pieces that stay in cache.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gradspectra_core.records import Bool, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor, nn

from gradspectra.compiling import (
    ADAM,
    LAYER,
    MOST_BLOCKS,
    NO_UPDATE,
    ROW,
    SAMPLE,
    VECTOR,
    Compiled,
    compilation,
    switched_off,
)
from gradspectra.flat import given_threads
from gradspectra.inventory import Inventory, WatchedTensor
from gradspectra.piecewise import layers_of, measure_in_pieces
from gradspectra.second_numbers import unit_pieces
from gradspectra.settings import fused_wanted
from gradspectra.updates import Coefficients, UpdateTerms, unknown_update

CPU = torch.device("cpu")
PLAIN = frozenset((Tensor, nn.Parameter))
FLOAT32, STRIDED = torch.float32, torch.strided
BYTES = 4
"""Of a number in float32."""
UNKNOWN = Coefficients(NO_UPDATE, 0.0, 0.0, 0.0, 1.0, None)
"""Of tensors whose update is not known."""
KEPT_LAYOUTS = 256
"""Sets of tensors that were measured together whose layout is kept at most."""


@dataclass(slots=True)
class FusedRows:
    """What one pass has measured of n layers.

    tensors: by the index of their first layer. columns: (n,) the layers. entries: (n,) how many numbers each has.
    rows: (n, len(ROW)); `row` gives one of its columns. update: (n,) whether the direction is that of a known update;
    factor: (n,) ΔW = −factor·d. moments: (n,) whether first_sq and second_sum are Adam's, and (n, 2) corrections what
    makes them those of m̂ and v̂. other_moments: (n,) whether the optimizer keeps Adam's, and they are not these.
    second: (n,) where the numbers lie that second_sum is of, as long as the optimizer leaves them there. medians: (n,)
    of these, where they came with the sums.
    """

    tensors: frozenset[int]
    columns: Int64
    entries: Int64
    rows: Float64
    update: Bool
    factor: Float64
    moments: Bool
    corrections: Float64
    other_moments: Bool
    second: NDArray[np.uint64]
    medians: Float64 | None = None

    def row(self, name: str) -> Float64:
        """One number of each layer, (n,)."""
        return self.rows[:, ROW.index(name)]


class _Layout:
    """The layers of tensors that one pass takes together: all of LAYER that is the same at each step.

    pieces: per tensor its layers, as first number, output units, and numbers of each. Addresses and the rest of
    LAYER are written through words, (n, 10), and numbers, the same memory as float64.
    """

    def __init__(self, tensors: tuple[int, ...], pieces: Sequence[Sequence[tuple[int, int, int]]]) -> None:
        of = [index for index, own in enumerate(pieces) for _ in own]
        flat = np.array([piece for own in pieces for piece in own], np.int64)
        self.tensors = frozenset(tensors)
        pairs = zip(tensors, pieces, strict=True)
        self.columns = np.array([first + at for first, own in pairs for at in range(len(own))], np.int64)
        self.entries = flat[:, 1] * flat[:, 2]
        self.of = np.array(of, np.int64)
        """(n,) which of the tensors each layer belongs to."""
        self.starts = (BYTES * flat[:, :1]).astype(np.uint64)
        self.table = np.zeros(len(of), LAYER)
        self.table["units"], self.table["per_unit"] = flat[:, 1], flat[:, 2]
        self.words = self.table.view(np.uint64).reshape(len(of), -1)
        self.numbers = self.table.view(np.float64).reshape(len(of), -1)
        self.address = self.table.ctypes.data
        firsts = zip(of, flat.tolist(), strict=True)
        self.pieces = [(tensor, start, start + rows * each, each) for tensor, (start, rows, each) in firsts]
        """Of each layer its tensor, its numbers [start, stop) of that, and the numbers of an output unit."""


class Sources(NamedTuple):
    """What a tensor is measured from, each on the host and in order; place: which coefficients are its update's.

    What a rule does not take is the gradient, and multiplied by 0.
    """

    gradient: Tensor
    weight: Tensor
    first: Tensor
    second: Tensor
    place: int


class FusedPass:
    """Measures what it can of the tensors of one inventory; the rest is left to torch's own operations.

    everything: all sums are wanted whenever some are, so that a pass pays that is not compiled. Raises ValueError for a
    wrong GRADSPECTRA_FUSED.
    """

    def __init__(self, inventory: Inventory, everything: bool = False) -> None:
        self._everything = everything
        self._compilation = compilation() if fused_wanted() else switched_off()
        self._compiled: Compiled | None = None
        self._pieces: dict[int, list[tuple[int, int, int]]] = {}
        self._entries: dict[int, int] = {}
        self._layouts: dict[tuple[int, ...], _Layout] = {}
        for tensor in inventory.tensors:
            if fits(tensor):
                self._pieces[tensor.first] = unit_pieces(tensor, inventory)
                self._entries[tensor.first] = tensor.pieces[-1][1]

    @property
    def compiled(self) -> Compiled | None:
        """The compiled pass; None while it is being compiled, or where it cannot be had."""
        if self._compiled is None and self._compilation.done() and self._compilation.exception() is None:
            self._compiled = self._compilation.result()
        return self._compiled

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
        if not self._pieces or (compiled is None and not self._everything):
            return None
        known = optimizer is not None and unknown_update(optimizer) is None
        terms = UpdateTerms(optimizer) if known else None
        taken: list[int] = []
        addresses: list[int] = []
        sources: list[Sources] = []
        for tensor in tensors:
            entries = self._entries.get(tensor.first)
            if entries is None or id(tensor.parameter) in early:
                continue
            own = _sources(tensor.parameter, terms, tensor)
            at = [] if own is None else [address(numbers, entries) for numbers in (own[:4] if terms else own[:2])]
            if own is not None and all(at):
                taken.append(tensor.first)
                addresses += at if terms else [*at, at[0], at[0]]
                sources.append(own)
        if not taken:
            return None
        layout = self._layout(tuple(taken))
        coefficients = [UNKNOWN] if terms is None else terms.coefficients
        of_update = _fill(layout, addresses, [own.place for own in sources], coefficients)
        rows, medians = self._measured(compiled, layout, sources, coefficients)
        return FusedRows(
            layout.tensors,
            layout.columns,
            layout.entries,
            rows,
            np.full(len(layout.of), known),
            of_update[:, 4],
            of_update[:, 5] > 0,
            of_update[:, 6:],
            (of_update[:, 0] == ADAM) & ~(of_update[:, 5] > 0),
            layout.words[:, 3].copy(),
            medians,
        )

    @staticmethod
    def _measured(
        compiled: Compiled | None, layout: _Layout, sources: Sequence[Sources], coefficients: Sequence[Coefficients]
    ) -> tuple[Float64, Float64 | None]:
        """The rows of the layers of a filled layout, and, where there is no compiled pass, their medians."""
        if compiled is None:
            updates = [coefficients[own.place] for own in sources]
            return measure_in_pieces(layers_of([own[:4] for own in sources], updates, layout.pieces))
        rows = np.empty((len(layout.of), len(ROW)))
        compiled.measure(len(layout.of), layout.address, rows.ctypes.data, given_threads())
        return rows, None

    def _layout(self, tensors: tuple[int, ...]) -> _Layout:
        layout = self._layouts.get(tensors)
        if layout is None:
            if len(self._layouts) >= KEPT_LAYOUTS:
                self._layouts.clear()
            layout = self._layouts[tensors] = _Layout(tensors, [self._pieces[first] for first in tensors])
        return layout

    def medians(self, rows: FusedRows, chosen: Int64) -> Float64:
        """Medians of what second_sum is of, of some of these layers, (len(chosen),); on a sample of each.

        To be asked for before the optimizer steps again.
        """
        if rows.medians is not None:
            return rows.medians[chosen]
        assert self.compiled is not None
        entries, medians = rows.entries[chosen], np.empty(len(chosen))
        table = np.zeros(len(chosen), SAMPLE)
        table["numbers"], table["width"] = rows.second[chosen], 1
        stride = table["stride"] = -(-entries // MOST_BLOCKS) | 1
        table["blocks"] = -(-entries // stride)
        self.compiled.medians(len(table), table.ctypes.data, medians.ctypes.data, given_threads())
        return medians

    def squares(self, held: Sequence[tuple[WatchedTensor, Tensor]]) -> tuple[Float64, list[int], list[int]] | None:
        """Sums of squares of gradients that were not added to `.grad` yet, n layers in all; None without a pass.

        Returns the sums (n,), the layer of each, and which of the gradients are left to torch.
        """
        compiled = self.compiled
        if compiled is None:
            return None
        found: list[int] = []
        places: list[int] = []
        left: list[int] = []
        for index, (tensor, gradient) in enumerate(held):
            entries = self._entries.get(tensor.first)
            place = address(gradient, entries) if entries is not None else 0
            if place:
                found.append(tensor.first)
                places.append(place)
            else:
                left.append(index)
        if not found:
            return np.empty(0), [], left
        layout = self._layout(tuple(found))
        table, sums = np.empty(len(layout.of), VECTOR), np.empty(len(layout.of))
        table["numbers"] = np.array(places, np.uint64)[layout.of] + layout.starts[:, 0]
        table["count"] = layout.entries
        compiled.squares(len(table), table.ctypes.data, sums.ctypes.data, given_threads())
        return sums, layout.columns.tolist(), left


def fits(tensor: WatchedTensor) -> bool:
    """Whether a tensor is of the kind that is measured in C, as long as its gradient and state are so too."""
    return tensor.axis == 0 and address(tensor.parameter, 1) > 0


def address(numbers: Tensor | None, entries: int) -> int:
    """Where so many float32 numbers on the host, at least, lie one after another; 0 where they do not.

    Of a sharded tensor those that this rank has.
    """
    if type(numbers) not in PLAIN:
        numbers = getattr(numbers, "_local_tensor", None)
        if type(numbers) not in PLAIN:
            return 0
    if (
        numbers is not None
        and numbers.dtype is FLOAT32
        and numbers.is_cpu
        and numbers.is_contiguous()
        and numbers.layout is STRIDED
        and numbers.numel() >= entries
    ):
        return numbers.data_ptr()
    return 0


def _sources(parameter: Tensor, terms: UpdateTerms | None, tensor: WatchedTensor) -> Sources | None:
    """What a tensor is measured from, wherever that lies; None where torch must."""
    gradient = parameter.grad
    if gradient is None:
        return None
    if terms is None:
        return Sources(gradient, parameter, gradient, gradient, 0)
    own = terms.of(tensor)
    if own is None:
        return None
    first, second, place = own
    first, second = gradient if first is None else first, gradient if second is None else second
    return Sources(gradient, parameter, first, second, place)


def _fill(layout: _Layout, addresses: list[int], shared: list[int], coefficients: Sequence[Coefficients]) -> Float64:
    """Write a step's addresses and coefficients into the layout's table. Returns the latter: (n, 8)."""
    layout.words[:, :4] = np.array(addresses, np.uint64).reshape(-1, 4)[layout.of] + layout.starts
    kinds = np.array([[*own[:5], own.corrections is not None, *(own.corrections or (1, 1))] for own in coefficients])
    of_update: Float64 = kinds[np.array(shared)[layout.of]]
    layout.table["rule"] = of_update[:, 0]
    layout.numbers[:, 7:] = of_update[:, 1:4]
    return of_update
