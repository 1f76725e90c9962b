"""Weights that are kept while their optimizer steps, of a few tensors at a time, to see what became of them.

Asked for of updates that the optimizer's state does not tell, and of types that round small updates away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW

from gradspectra.inventory import WatchedTensor
from gradspectra.measure import UPDATE, FirstTier
from gradspectra.updates import current_group, decay_of, unknown_update

STAGED = 1 << 22
"""Entries of weights that are kept at most, unless one tensor has more."""
FEWEST, PART = 1 << 12, 64
"""So many entries may be kept in any case; else at most this part of those of the watched tensors."""
LOW_PRECISION = (torch.bfloat16, torch.float16)


class Staging:
    """Chooses whose weights are kept at a step, of all optimizers together: first those not kept for the longest time.

    optimizers: those that the tensors name by index; none where updates that their state does not tell are left out.
    """

    def __init__(self, tensors: Sequence[WatchedTensor], optimizers: Sequence[Any] = ()) -> None:
        self._optimizers = optimizers
        self._room = min(STAGED, max(FEWEST, sum(tensor.parameter.numel() for tensor in tensors) // PART))
        self._rounded = any(tensor.parameter.dtype in LOW_PRECISION for tensor in tensors)
        self._kept_at: dict[int, int] = {}
        self._step = 0
        self.chosen: frozenset[int] = frozenset()
        """Identities of the parameters to be kept at the step that comes."""

    def choose(self, due: Sequence[WatchedTensor]) -> None:
        """Choose of the tensors that have their turn at the step that comes: one, or as many as have room."""
        self.chosen = frozenset()
        untold = [_untold(optimizer) for optimizer in self._optimizers]
        if not self._rounded and not any(untold):
            return
        self._step += 1
        wanted = [tensor for tensor in due if self._asked(tensor, untold)]
        chosen: list[int] = []
        room = self._room
        for tensor in sorted(wanted, key=lambda tensor: (self._kept_at.get(tensor.first, 0), tensor.first)):
            room -= tensor.parameter.numel()
            if chosen and room < 0:
                break
            chosen.append(id(tensor.parameter))
            self._kept_at[tensor.first] = self._step
        self.chosen = frozenset(chosen)

    def _asked(self, tensor: WatchedTensor, untold: Sequence[bool]) -> bool:
        if tensor.parameter.dtype in LOW_PRECISION:
            return True
        if not 0 <= tensor.optimizer < len(untold) or not untold[tensor.optimizer]:
            return False
        optimizer = self._optimizers[tensor.optimizer]
        group = current_group(optimizer, tensor)
        return unknown_update(optimizer) is not None or group is None or decayed_away(optimizer, group) is not None


def _untold(optimizer: Any) -> bool:
    """Whether its state does not tell some of its updates."""
    if unknown_update(optimizer) is not None:
        return True
    return any(decayed_away(optimizer, group) is not None for group in optimizer.param_groups)


def decayed_away(optimizer: Any, group: dict[str, Any]) -> str | None:
    """Say why an optimizer of a known type does not tell updates of a group at its present rate; None where it does."""
    rate = group["lr"]
    if (group.get("momentum") and not group["nesterov"]) or (isinstance(rate, Tensor) and not rate.is_cpu):
        return None  # the buffer is the update, or the rate is not known without waiting
    try:
        decay_of(group, type(optimizer) in (SGD, AdamW))
    except ZeroDivisionError as error:
        return str(error)
    return None


def put_update(tier: FirstTier, tensor: WatchedTensor, squares: Tensor) -> None:
    """Write ‖ΔW‖² of a tensor's layers, (n,) on their device, to the results of the first tier."""
    row = next(results for results in tier.results() if results.device == squares.device)[UPDATE]
    place = slice(tensor.first, tensor.first + len(tensor.pieces))
    row[place].copy_(squares)
    tier.marks.update[place], tier.marks.factor[place] = True, 1.0
