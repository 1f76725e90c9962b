"""Examples of each part from the model's inputs, where the user gave a function for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from gradspectra.arguments import MAX_EXAMPLES, shown
from gradspectra.capture import capturing
from gradspectra.guard import Guard


def checked_examples(examples: Any) -> float:
    """What the user's function gave, as a number; raises ValueError where a part cannot have so many."""
    number = float(examples)
    if not 0 < number <= MAX_EXAMPLES:
        raise ValueError(f"batch_size must give from 1 to {MAX_EXAMPLES} examples, got {shown(examples)}")
    return number


class Inputs:
    """Calls count(*inputs) for each training forward pass of the models and tells the number to found.

    A hook of the models themselves would be copied and saved with them; this one is torch's hook for all modules.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], count: Callable[..., Any], guard: Guard, found: Callable[[float], None]
    ) -> None:
        self._models = {id(model) for model in models.values()}
        self._count = count
        self._guard = guard
        self._found = found
        self._handle = register_module_forward_pre_hook(self._hook)

    def close(self) -> None:
        """Take the hook away."""
        self._handle.remove()

    def _hook(self, module: nn.Module, inputs: Any) -> None:
        if id(module) in self._models and module.training and torch.is_grad_enabled() and not capturing():
            self._guard.run("batch_size", self._counted, *inputs)

    def _counted(self, *inputs: Any) -> None:
        examples = self._count(*inputs)
        if examples is not None:
            self._found(checked_examples(examples))
