"""What a user's function on names says of one parameter: whether it is watched, and the blocks it is split into."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from gradspectra_core.identity import FusedBlock, fused_blocks
from gradspectra_core.limits import DEFAULT_LIMITS

RIGHT = "True, False, or blocks (suffix, axis, start, stop) such as (('[low]', 0, 0, 64), ('[high]', 0, 64, 128))"


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
