"""The forward passes of steps that it is armed for: the largest output of each module, and what of it is not finite.

One hook for all modules, while it is armed, and none in between: a hook on a module would travel with its copies and
into saved files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from gradspectra.flat import OneThread
from gradspectra.guard import Guard
from gradspectra.inventory import Inventory
from gradspectra.second_tier import SecondTier, Unit

FRUITLESS = 3
"""Armed steps in a row without a forward pass of any module: after so many it is left alone."""


class Activations:
    """Measures the outputs of the modules without children that hold the watched tensors.

    off: why nothing is measured, in words; None where it is. seconds: what the hooks took since they were armed.
    """

    def __init__(self, models: Mapping[str, nn.Module], inventory: Inventory, tier: SecondTier, guard: Guard) -> None:
        modules = [module for model in models.values() for module in model.modules()]
        self._alarmed = False
        self._told = 0
        self.off = "act_max and act_nonfinite are not measured: the model is compiled" if _compiled(modules) else None
        self.seconds = 0.0
        self._tier = tier
        self._guard = guard
        self._handle: Any = None
        self._armed: dict[int, slice] = {}
        self._modules = {} if self.off else _modules_of(modules, inventory)
        self._known = frozenset([id(module) for module, _ in self._modules.values()])
        self._seen = False
        self._fruitless = 0

    def tell(self, step: int, finite: bool) -> None:
        """Whether a step's loss was finite: if that of the last step told of was not, `arm` arms every module."""
        if step >= self._told:
            self._told, self._alarmed = step, not finite

    @property
    def alarmed(self) -> bool:
        """Whether the last loss told of was not finite."""
        return self._alarmed

    @property
    def armed(self) -> frozenset[int]:
        """The layers whose modules' outputs are being measured."""
        return frozenset([layer for columns in self._armed.values() for layer in range(columns.start, columns.stop)])

    def arm(self, due: Iterable[Unit]) -> None:
        """Measure the forward passes to come of the modules that hold these tensors; of all after a loss not finite."""
        self.seconds = 0.0
        wanted = {id(tensor.parameter) for unit in due for tensor in unit.tensors}
        self._armed = {
            id(module): columns
            for parameter, (module, columns) in self._modules.items()
            if self._alarmed or parameter in wanted
        }
        self._seen = False
        if self._armed and self._handle is None:
            self._handle = register_module_forward_hook(self._hook)

    def disarm(self) -> None:
        """Take the hook away."""
        if self._armed:
            self._fruitless = 0 if self._seen else self._fruitless + 1
        if self._fruitless == FRUITLESS and self.off is None:
            self.off = "act_max and act_nonfinite are not measured: no module's forward pass is seen (torch.compile?)"
            self._modules = {}
        self._armed = {}
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _hook(self, module: nn.Module, _: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or id(module) not in self._known:
            return
        self._seen = True
        if id(module) not in self._armed:
            return
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return  # an evaluation, or a forward pass that checkpointing runs again
        began = time.perf_counter()
        self._guard.run("activations", self._measure, self._armed[id(module)], output)
        self.seconds += time.perf_counter() - began

    def _measure(self, columns: slice, output: Any) -> None:
        tensor = _first_tensor(output)
        if tensor is None or not tensor.is_floating_point() or not tensor.numel():
            return
        with torch.no_grad(), OneThread():
            low, high = torch.aminmax(tensor)
            largest = torch.maximum(-low, high).float()
            lost = None
            if tensor.device.type != "cpu" or not math.isfinite(largest.item()):
                finite = tensor.isfinite()
                lost = finite.logical_not().sum().float()
                largest = torch.where(finite, tensor.abs(), -1).amax().float()
            self._tier.put_forward(columns, largest, lost)


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        output = list(output.values())
    entries = output if isinstance(output, (tuple, list)) else [output]
    return next((entry.detach() for entry in entries if isinstance(entry, Tensor)), None)


def _compiled(modules: Iterable[nn.Module]) -> bool:
    return any(hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) for module in modules)


def _modules_of(modules: Iterable[nn.Module], inventory: Inventory) -> dict[int, tuple[nn.Module, slice]]:
    """By the identity of its first watched tensor: each module without children, and the layers of that tensor.

    Of modules that share a tensor the first.
    """
    places = {id(t.parameter): slice(t.first, t.first + len(t.pieces)) for t in inventory.tensors}
    found: dict[int, tuple[nn.Module, slice]] = {}
    for module in modules:
        if next(module.children(), None) is None:
            first = next((id(p) for p in module._parameters.values() if p is not None and id(p) in places), None)
            if first is not None:
                found.setdefault(first, (module, places[first]))
    return found
