"""What torch's GradScaler does at a step: the scale that the backward passes saw, and steps that it skips.

An optimizer that does not scale by itself is not called at all on a skipped step, so no hook of it could tell.
"""

from __future__ import annotations

import functools
from typing import Any, Protocol

import torch

from gradspectra.patches import Function, Patch


class ScalerObserver(Protocol):
    """What hears of a scaler's step; must not raise but to stop the training."""

    def scaler_steps(self, scaler: Any, optimizer: Any) -> None: ...

    def scaler_stepped(self, optimizer: Any) -> None: ...


def _wrap(_: str, original: Function) -> Function:
    observers = patch.observers

    @functools.wraps(original)
    def step(self: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.is_enabled() or torch.compiler.is_compiling():
            return original(self, optimizer, *args, **kwargs)
        for observer in tuple(observers):
            observer.scaler_steps(self, optimizer)
        result = original(self, optimizer, *args, **kwargs)
        for observer in tuple(observers):
            observer.scaler_stepped(optimizer)
        return result

    return step


patch: Patch[ScalerObserver] = Patch([(torch.amp.GradScaler, "step")], _wrap)
