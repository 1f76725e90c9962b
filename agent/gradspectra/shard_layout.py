"""How the numbers of the second tier lie in the vector that ranks with sharded layers add up.

What is no sum has its own place: the largest output a slot for each rank; a unit whose gradient is all zero a count of
the ranks that have something else, several counts in one number; a median the entries that it is taken of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradspectra.inventory import WatchedTensor
from gradspectra.second_numbers import (
    OF_FORWARD,
    OF_GRADIENT,
    OF_MOMENTS,
    OF_ROUNDING,
    OF_UPDATE,
    ROWS,
    SAMPLE,
    units,
)
from gradspectra.shards import rows_here

GROUPS = (OF_GRADIENT, OF_UPDATE, OF_MOMENTS, OF_ROUNDING, OF_FORWARD)
"""Rows that a rank brings together, or not at all."""
SEEN = len(ROWS) + len(GROUPS)
"""The row that counts the ranks which saw an output, after the rows that count those which brought a group."""
WHOLE_BITS = 52
"""Of a float64, to be added up exactly."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The numbers of P layers on R ranks.

    columns: (P,) the layers. ranks: R. shared: (P,) output units that every rank has a part of, 0 where each has units
    of its own. samples: (P,) entries that the median is taken of, 0 where it is not taken.
    """

    columns: tuple[int, ...]
    ranks: int
    shared: tuple[int, ...]
    samples: tuple[int, ...]

    @property
    def sizes(self) -> list[int]:
        """Numbers of each of the four pieces that `split` gives."""
        columns = len(self.columns)
        packed = sum(packed_size(count, self.ranks) for count in self.shared)
        return [(SEEN + 1) * columns, self.ranks * columns, packed, sum(self.samples)]

    @property
    def numbers(self) -> int:
        """How many they are."""
        return sum(self.sizes)

    def split(self, vector: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Views of (numbers,): rows (SEEN + 1, P), slots (R, P), and of each layer its packed counts and its sample."""
        rows, slots, counts, samples = torch.split(vector, self.sizes)
        columns = len(self.columns)
        packed = torch.split(counts, [packed_size(count, self.ranks) for count in self.shared])
        apart = torch.split(samples, list(self.samples))
        return rows.view(-1, columns), slots.view(-1, columns), list(packed), list(apart)


def _fields(ranks: int) -> tuple[int, int]:
    """Bits of a count of ranks, and how many such counts a number holds."""
    bits = ranks.bit_length()
    return bits, WHOLE_BITS // bits


def packed_size(marks: int, ranks: int) -> int:
    """How many numbers so many marks become."""
    return -(-marks // _fields(ranks)[1])


def packed(marks: Tensor, ranks: int) -> Tensor:
    """Marks (n,) bool as (packed_size(n),) float64, whose sum over the ranks keeps the count of each mark apart."""
    bits, each = _fields(ranks)
    padded = torch.zeros(packed_size(len(marks), ranks) * each, dtype=torch.float64, device=marks.device)
    padded[: len(marks)] = marks.double()
    weights = 2.0 ** (bits * torch.arange(each, dtype=torch.float64, device=marks.device))
    return (padded.view(-1, each) * weights).sum(1)


def unpacked(numbers: Tensor, marks: int, ranks: int) -> Tensor:
    """How many ranks set each of so many marks: (marks,) int64, from the sum of what `packed` made on each."""
    bits, each = _fields(ranks)
    shifted = numbers.long()[:, None] >> (bits * torch.arange(each, device=numbers.device))
    return (shifted & ((1 << bits) - 1)).view(-1)[:marks]


def sample_size(entries: int) -> int:
    """Of how many entries a median is taken, as where nothing is sharded."""
    return len(range(0, entries, _stride(entries)))


def _stride(entries: int) -> int:
    return -(-entries // SAMPLE) | 1


def sample_here(tensor: WatchedTensor, piece: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Which entries of a layer's sample are here: their places in the sample, and in the layer's numbers of this shard.

    piece: which layer of the tensor; shape: of that layer.
    """
    (start, stop), axis = tensor.whole[piece], tensor.axis
    entries, here = stop - start, tensor.pieces[piece][1] - tensor.pieces[piece][0]
    runs = units(shape, axis) * math.prod(shape[1:axis]) if axis else 1
    run, own = entries // runs, here // runs
    row = run // shape[0]
    first = rows_here(tensor.parameter)[0] * row - (0 if axis else start)
    first = min(max(first, 0), run)
    at = torch.arange(0, entries, _stride(entries), device="cpu")
    within = at % run - first
    mine = (within >= 0) & (within < own)
    return mine.nonzero().view(-1), ((at // run) * own + within)[mine]
