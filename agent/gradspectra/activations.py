"""The forward passes of steps that it is armed for: the largest output of each module, and what of it is not finite.

One hook for all modules, while it is armed, and none in between: a hook on a module would travel with its copies and
into saved files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from gradspectra.budget import Budget
from gradspectra.capture import capturing
from gradspectra.compiling import ArrayFunction
from gradspectra.flat import extremes, given_threads
from gradspectra.fused import FusedPass
from gradspectra.guard import Guard
from gradspectra.inventory import Inventory
from gradspectra.second_tier import SecondTier
from gradspectra.second_units import Unit
from gradspectra.turns import Turns

NOTHING = (-1.0, 0.0)
"""Largest absolute entry and count of what is not finite, of no output at all."""
FEWEST_OUTPUTS = 1 << 18
"""Numbers of outputs that may be measured at a step within a budget, however small the model."""
FRUITLESS = 3
"""Armed steps in a row without a forward pass of any module: after so many it is left alone."""


class Activations:
    """Measures the outputs of the modules without children that hold the watched tensors.

    off: why nothing is measured, in words; None where it is. seconds: what the hooks took since they were armed.
    fused: the compiled pass, which finds the extremes of float32 outputs on the host, where there is one. in_turns:
    whether, within a budget, outputs with more numbers than half of the weights have, by what they had before, are
    measured in turn: a small model's are many times its weights. Ranks that must measure alike cannot do so.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        inventory: Inventory,
        tier: SecondTier,
        budget: Budget,
        guard: Guard,
        fused: FusedPass | None = None,
        in_turns: bool = True,
    ) -> None:
        modules = [module for model in models.values() for module in model.modules()]
        self._alarmed = False
        self._told = 0
        self.off = "act_max and act_nonfinite are not measured: the model is compiled" if _compiled(modules) else None
        self.seconds = 0.0
        self._tier = tier
        self._guard = guard
        self._handle: Any = None
        self._modules = {} if self.off else _modules_of(modules, inventory)
        self._places = {id(module): place for place, (module, _) in enumerate(self._modules.values())}
        self._columns = [columns for _, columns in self._modules.values()]
        self._armed: dict[int, slice] = {}
        self._in_turns = in_turns
        weights = sum(tensor.parameter.numel() for tensor in inventory.tensors)
        self._turns = Turns([0] * len(self._modules), budget.room(max(FEWEST_OUTPUTS, weights // 2)))
        """Of the modules; sizes: how many numbers their outputs had at the last step that they were measured at."""
        self._fused = fused
        self._extremes: ArrayFunction | None = None
        self._found = np.empty((len(self._modules), 2))
        self._address = self._found.ctypes.data
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
        places = [place for place, own in enumerate(self._modules) if self._alarmed or own in wanted]
        if self._in_turns and not self._alarmed:
            places = self._turns.take(places)
        self._armed = {place: self._columns[place] for place in places}
        for place in places:
            self._turns.sizes[place] = 0
        compiled = None if self._fused is None else self._fused.compiled
        self._extremes = None if compiled is None else compiled.extremes
        self._found[:] = NOTHING
        self._seen = False
        if self._armed and self._handle is None:
            self._handle = register_module_forward_hook(self._hook)

    def collect(self) -> None:
        """Hand over what the compiled pass has found since the hook was armed."""
        measured = np.flatnonzero((self._found != NOTHING).any(1))
        if len(measured):
            columns = [range(own.start, own.stop) for own in (self._columns[place] for place in measured.tolist())]
            largest, lost = self._found[np.repeat(measured, [len(own) for own in columns])].T
            self._tier.put_outputs(np.array([column for own in columns for column in own]), largest, lost)
            self._found[:] = NOTHING

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
        if torch.compiler.is_compiling():
            return
        place = self._places.get(id(module))
        if place is None:
            return
        self._seen = True
        if place not in self._armed:
            return
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1 or capturing():
            return  # an evaluation, or a forward pass that checkpointing runs again
        began = time.perf_counter()
        self._guard.run("activations", self._measure, place, output)
        self.seconds += time.perf_counter() - began

    def _measure(self, place: int, output: Any) -> None:
        tensor = output if type(output) is Tensor else _first_tensor(output)
        if tensor is None or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return
        self._turns.sizes[place] += tensor.numel()
        if self._extremes is not None:
            address = _address(tensor)
            if address:
                found = self._address + place * self._found.strides[0]
                self._extremes(tensor.numel(), address, found, given_threads())
                return
        if not tensor.is_floating_point() or not tensor.numel() or tensor.layout is not torch.strided:
            return
        if tensor.is_cpu:
            self._measure_on_host(place, tensor.detach())
        else:
            self._measure_on_device(self._columns[place], tensor.detach())

    def _measure_on_host(self, place: int, tensor: Tensor) -> None:
        low, high = extremes(tensor)
        largest, lost = max(-low, high), 0
        if not math.isfinite(high - low):
            finite = tensor.isfinite()
            lost = tensor.numel() - int(finite.sum())
            largest = torch.where(finite, tensor.abs(), -1).amax().item()
        found = self._found[place]
        found[:] = max(found[0], largest), found[1] + lost

    def _measure_on_device(self, columns: slice, tensor: Tensor) -> None:
        finite = tensor.isfinite()
        largest = torch.where(finite, tensor.abs(), -1).amax().float()
        self._tier.put_forward(columns, largest, finite.logical_not().sum().float())


def _address(tensor: Tensor) -> int:
    """Where float32 numbers on the host lie without gaps, in whatever order; 0 where they do not."""
    if type(tensor) is not Tensor or tensor.dtype is not torch.float32 or not tensor.is_cpu:
        return 0
    if tensor.layout is not torch.strided:
        return 0
    if not tensor.is_contiguous() and not tensor.is_contiguous(memory_format=torch.channels_last):
        return 0
    return tensor.data_ptr()


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        output = list(output.values())
    entries = output if isinstance(output, (tuple, list)) else [output]
    return next((entry for entry in entries if isinstance(entry, Tensor)), None)


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
