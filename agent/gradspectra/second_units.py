"""What the second tier measures together: one tensor, or several small ones alike."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from itertools import chain

from torch import Tensor

from gradspectra.bundles import bundle
from gradspectra.doubt import Doubt
from gradspectra.inventory import WatchedTensor
from gradspectra.second_numbers import units


@dataclass(slots=True, eq=False)
class Unit:
    """Tensors of one optimizer that are measured together.

    firsts: of each its first layer. layers: all of them; columns: (n,) the same, on their device; counts: output units
    of each; expected: seconds, as a first guess; doubt: of it; taken: the step it was last measured at; alone: one unit
    for each tensor, once it was needed.
    """

    tensors: tuple[WatchedTensor, ...]
    firsts: frozenset[int]
    layers: tuple[int, ...]
    columns: Tensor
    counts: tuple[int, ...]
    expected: float
    taken: int = -1
    alone: list[Unit] | None = None
    doubt: Doubt = field(default_factory=Doubt)

    def cost(self, speed: float) -> float:
        """Seconds that it is expected to take, where all units take `speed` times what was guessed first."""
        return self.expected * speed * self.doubt.part


def together(tensors: Sequence[WatchedTensor]) -> list[tuple[WatchedTensor, ...]]:
    """Bundles of tensors with as many output units each, in the order of the model as far as bundles have one."""
    alike: dict[tuple[int, int], list[WatchedTensor]] = {}
    for tensor in tensors:
        alike.setdefault((tensor.optimizer, units(tensor.parameter.shape, tensor.axis)), []).append(tensor)
    found = chain.from_iterable(bundle(same) for same in alike.values())
    return sorted(found, key=lambda part: part[0].first)


def expected_seconds(entries: int) -> float:
    """A first guess of what a unit of so many entries costs, until it was seen."""
    return 6e-5 + 4e-9 * entries


def learned(taken: Sequence[Unit], seconds: float, speed: float) -> float:
    """What `speed` is from now on: these took so many seconds. One slow time does not say much.

    Where a unit was among them whose expectation had been doubted, it is that unit's expectation that is mended.
    """
    cost = max(sum(unit.cost(speed) for unit in taken), 1e-9)
    doubted = [unit for unit in taken if unit.doubt.part < 1.0]
    for unit in doubted:
        unit.expected = unit.doubt.settled(unit.expected, unit.expected * unit.doubt.part * seconds / cost)
    return speed if doubted else speed * min(max(seconds / cost, 0.7), 1.5) ** 0.3


def dense(tensor: WatchedTensor, early: Container[int]) -> bool:
    """Whether a tensor has a gradient that is not sparse and still what it was: early is as for SecondTier.take."""
    gradient = tensor.parameter.grad
    return gradient is not None and not gradient.is_sparse and id(tensor.parameter) not in early
