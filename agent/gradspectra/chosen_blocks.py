"""Which parameters a user's function on names chooses, and the blocks that each is split into, by it or by its name."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from gradspectra_core.identity import FusedBlock, block_shape, expert_blocks, fused_blocks
from gradspectra_core.layers import Layer
from gradspectra_core.limits import DEFAULT_LIMITS
from gradspectra_core.roles import role_of
from torch import Tensor

RIGHT = "True, False, or blocks (suffix, axis, start, stop) such as (('[low]', 0, 0, 64), ('[high]', 0, 64, 128))"
MOST_WITH_EXPERTS = 4096
"""Layers that a run has at most with the experts of its tensors told apart, unless a user's function names them."""


@dataclass(slots=True)
class Chosen:
    """A parameter that is watched. kind: class name of its module; blocks: () where it is one layer, by_name: of its
    name, not of the user's function.
    """

    name: str
    parameter: Tensor
    kind: str
    depth: int
    blocks: tuple[FusedBlock, ...]
    by_name: bool

    @classmethod
    def of(cls, answer: object, name: str, parameter: Tensor, kind: str, depth: int) -> Chosen | None:
        """What the function gave for it, as `chosen_blocks` takes it; None where it is not watched."""
        blocks = chosen_blocks(answer, name, tuple(parameter.shape), kind) if parameter.numel() else None
        by_name = not isinstance(answer, Sequence)
        return None if blocks is None else cls(name, parameter, kind, depth, blocks, by_name)

    def layers(self) -> list[Layer]:
        """The layers that it makes up."""
        shape = tuple(self.parameter.shape)
        named = [(f"{self.name}{block[0]}", block_shape(shape, block)) for block in self.blocks]
        named = named or [(self.name, shape)]
        return [Layer(name, role_of(name, part, self.kind), self.depth, part) for name, part in named]


def keep_experts_together(chosen: Sequence[Chosen]) -> tuple[str, ...]:
    """Where the experts that names tell make too many layers, leave all their tensors whole; says so, in words."""
    split = [one for one in chosen if one.by_name and expert_blocks(one.name, tuple(one.parameter.shape), one.kind)]
    layers = sum(max(len(one.blocks), 1) for one in chosen)
    if not split or layers <= MOST_WITH_EXPERTS:
        return ()
    for one in split:
        one.blocks = ()
    what = f"experts of {len(split)} tensors are not told apart, and have no spectra of their own"
    why = f"with a layer for each the run would have {layers} layers, more than {MOST_WITH_EXPERTS}"
    return (f"{what}: {why}; choose fewer tensors, or name their experts, by layers=",)


def chosen_blocks(chosen: object, name: str, shape: tuple[int, ...], kind: str) -> tuple[FusedBlock, ...] | None:
    """Blocks of a parameter, () where it is one layer, None where it is not watched.

    chosen: what the function gave for it. kind: class name of its module. Raises TypeError or ValueError, naming the
    parameter and what was given, for anything that no layers can be made of.
    """
    if isinstance(chosen, bool | np.bool_):
        return fused_blocks(name, shape, kind) if chosen else None
    if not isinstance(chosen, Sequence) or isinstance(chosen, str) or not chosen:
        raise TypeError(f"layers({name!r}) must give {RIGHT}, got {chosen!r:.100}")
    blocks = [_block(entry, name, shape) for entry in chosen]
    if len({axis for _, axis, _, _ in blocks}) > 1:
        raise ValueError(f"layers({name!r}) must give blocks along one axis, got {chosen!r:.200}")
    if len({suffix for suffix, *_ in blocks}) < len(blocks):
        raise ValueError(f"layers({name!r}) must give each block a suffix of its own, got {chosen!r:.200}")
    for before, after in pairwise(sorted(blocks, key=operator.itemgetter(2))):
        if before[3] > after[2]:
            raise ValueError(f"layers({name!r}) must give blocks that do not overlap, got {before} and {after}")
    return tuple(blocks)


def can_be_recorded(name: str) -> bool:
    """Whether a layer may have this name on its way to the server."""
    return name.isprintable() and 1 <= len(name) <= DEFAULT_LIMITS.max_name


def _block(entry: object, name: str, shape: tuple[int, ...]) -> FusedBlock:
    if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != 4:
        raise TypeError(f"layers({name!r}) must give {RIGHT}, got a block {entry!r:.100}")
    suffix, *numbers = entry
    try:
        axis, start, stop = map(operator.index, numbers)
    except TypeError:
        raise TypeError(f"a block of {name!r} must have whole numbers after its suffix, got {entry!r:.100}") from None
    if not isinstance(suffix, str):
        raise TypeError(f"the suffix of a block of {name!r} must be text, got {suffix!r:.100}")
    if not suffix or not can_be_recorded(name + suffix):
        raise ValueError(
            f"the suffix of a block of {name!r} must be printable text that makes a name of at most "
            f"{DEFAULT_LIMITS.max_name} characters, got {suffix!r:.100}"
        )
    if not 0 <= axis < len(shape):
        raise ValueError(f"the axis of a block of {name!r} must be one of its {len(shape)}, from 0, got {entry!r:.100}")
    if not 0 <= start < stop <= shape[axis]:
        raise ValueError(f"a block of {name!r} must lie within 0 and {shape[axis]} on axis {axis}, got {entry!r:.100}")
    return suffix, axis, start, stop
