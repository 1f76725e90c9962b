"""Optimizers whose steps leave other gradients behind than they were given: these are measured before the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gradspectra.backward import Backward
from gradspectra.inventory import WatchedTensor
from gradspectra.step import OpenStep
from gradspectra.updates import unknown_update


class Spent:
    """Finds them by what their steps do: one divides each gradient where it lies, others center it, or let go of it.

    Not asked are torch's Adam, AdamW and SGD, which do not, and fused ones, which take away the loss scale alone.
    """

    def __init__(self, optimizers: Sequence[Any], backward: Backward) -> None:
        self._backward = backward
        self._asked = [
            unknown_update(optimizer) is not None and not any(group.get("fused") for group in optimizer.param_groups)
            for optimizer in optimizers
        ]
        self._found: set[int] = set()
        self._before: list[tuple[Tensor, int, int]] = []
        self._passes = 0

    def opens(self, index: int, tensors: Sequence[WatchedTensor]) -> bool:
        """An optimizer is about to step. Returns whether it is one of them. tensors: its own, to be measured."""
        self._passes, self._before = self._backward.passes, []
        if self._asked[index]:
            grads = [(t.parameter, t.parameter.grad) for t in tensors]
            self._before = [(p, id(grad), grad._version) for p, grad in grads if grad is not None]
        return index in self._found

    def stepped(self, step: OpenStep, index: int, parameters: frozenset[int]) -> bool:
        """It has stepped. Returns whether what it was given is not known any more: nothing is said of it then.

        parameters: its own, by identity.
        """
        before, self._before = self._before, []
        if self._backward.passes != self._passes:  # a closure has brought other gradients
            step.clipping_unseen |= index in self._found
            return False
        if index in self._found or not any(_changed(*own) for own in before):
            return False
        self._found.add(index)
        step.stale = True
        step.clips.early |= dict.fromkeys(parameters, len(step.clips.clips))
        step.clips.spoiled |= parameters
        return True


def _changed(parameter: Tensor, identity: int, version: int) -> bool:
    gradient = parameter.grad
    return gradient is None or id(gradient) != identity or gradient._version != version
