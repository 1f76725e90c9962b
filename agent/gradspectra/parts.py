"""Backward passes between two steps: how many there were, and the squared norm of what each brought to a layer.

Both come from a hook that runs before the node which adds to `.grad`. A hook on the tensor would also run for
autograd.grad, which brings nothing; this one does not, and runs once for tied weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge
from torch.nn.modules.module import register_module_forward_hook

from gradspectra.bundles import SMALL, squares
from gradspectra.capture import capturing
from gradspectra.flat import OneThread, dot_into, flat, placed
from gradspectra.fused import CPU, FusedPass
from gradspectra.guard import Guard
from gradspectra.inventory import WatchedTensor

_FUNCTION_BACKWARD = BackwardCFunction.apply.__code__

SENTINELS = 3
"""Tensors whose nodes are hooked at every step to count backward passes: the first, the middle and the last."""


HELD_BYTES = 1 << 20
"""Gradients of a part that are held at most until they are measured together."""


class Backward:
    """Counts the backward passes since the last step."""

    def __init__(self, guard: Guard) -> None:
        self.passes = 0
        self._guard = guard
        self._task = getattr(torch._C, "_current_graph_task_id", None)
        self._last = -1
        self._nodes: list[Any] = []
        self._handles: list[Any] = []

    def follow(self, parameters: Sequence[Tensor], every: bool = False) -> None:
        """Count by a few of these parameters, or by every one where the few have no part in the loss."""
        self.stop()
        count = len(parameters)
        chosen = range(count) if every else sorted({0, count // 2, count - 1} & set(range(count)))
        for index in chosen:
            self._nodes.append(node_of(parameters[index]))
            self._handles.append(self._nodes[-1].register_prehook(self._hook))

    def follow_outputs(self, models: Sequence[nn.Module]) -> None:
        """Count by the models' outputs, where the nodes of parameters never run: those of sharded ones."""
        roots = {id(model) for model in models}

        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if id(module) in roots and torch.is_grad_enabled():
                self._guard.run("backward", self._follow_output, output)

        self._handles.append(register_module_forward_hook(hook))

    def _follow_output(self, output: Any) -> None:
        entries = output.values() if isinstance(output, Mapping) else output
        tensors = [output] if isinstance(output, Tensor) else [e for e in entries if isinstance(e, Tensor)]
        node = next((tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None), None)
        if node is not None:
            node.register_prehook(self._hook)

    def stop(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._nodes.clear()

    def _hook(self, _: Any) -> None:
        if (self._task is None or self._task() != self._last) and not capturing():
            self._guard.run("backward", self.saw)

    @property
    def counted(self) -> bool:
        """Whether passes are still counted."""
        return "backward" not in self._guard.off

    def saw(self) -> int:
        """A node of the pass that runs now was reached. Returns the number of the pass, from 1."""
        task = torch._C._current_graph_task_id()
        if task != self._last:
            self._last = task
            if not _within_another():
                self.passes += 1
        return max(self.passes, 1)


def _within_another() -> bool:
    """Whether this pass was begun by a function's own backward (reentrant checkpointing): it is no part of its own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _FUNCTION_BACKWARD:
            return True
        frame = frame.f_back
    return False


class PartSquares:
    """‖h_j‖² of the parts j of the steps it is armed for, per layer, on the device.

    Measuring in every hook would be slow: between two hooks the training fills the caches with its own. What the first
    part brings to an empty `.grad` is measured there, when the second begins; what a later part brings is held until
    HELD_BYTES have come together. (A first part's gradient is not held: torch would copy it instead of taking it.)

    fused: the compiled pass, where there is one. ranks: how many average their gradients. With several, `.grad` is soon
    the average: the first part is held too, and one part of this rank is enough.
    """

    def __init__(
        self,
        tensors: Sequence[WatchedTensor],
        layers: int,
        backward: Backward,
        guard: Guard,
        ranks: int = 1,
        fused: FusedPass | None = None,
    ) -> None:
        self._fused = fused
        self._ranks = ranks
        self._tensors = tensors
        self._layers = layers
        self._backward = backward
        self._guard = guard
        self._nodes: list[Any] = []
        self._handles: list[Any] = []
        self.armed = False
        """Whether parts are being measured."""
        self._spare: list[_Row] = []
        self._rows: list[_Row] = []
        self._held: list[tuple[_Row, WatchedTensor, Tensor]] = []
        self._held_bytes = 0
        self._in_grad: list[WatchedTensor] = []
        self._twice = False
        self.seconds = 0.0
        """What the hooks took of the backward passes since `clear`."""

    def arm(self) -> None:
        """Measure the backward passes to come. Hooks that are there still are used again: setting them takes long."""
        self.clear()
        if not self._nodes:
            self._nodes = [node_of(tensor.parameter) for tensor in self._tensors]
        if not self._handles:
            self._handles = [node.register_prehook(self._hook(index)) for index, node in enumerate(self._nodes)]
        self.armed = True

    def disarm(self) -> None:
        """Measure no more; what was measured stays until `clear`, and the hooks until `rest`."""
        self.armed = False

    def rest(self) -> None:
        """Take the hooks away: nothing is measured of the step that comes."""
        self.armed = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        """Forget the measured parts."""
        self._spare.extend(self._rows)
        self._rows = []
        self._held.clear()
        self._held_bytes = 0
        self._in_grad.clear()
        self._twice = False
        self.seconds = 0.0

    def _hook(self, index: int) -> Callable[[Any], None]:
        def prehook(gradients: Sequence[Tensor | None]) -> None:
            if not self.armed or capturing():
                return
            began = time.perf_counter()
            self._guard.run("parts", self._arrives, index, gradients[0])
            self.seconds += time.perf_counter() - began

        return prehook

    def _arrives(self, index: int, gradient: Tensor | None) -> None:
        """A part's gradient is about to be added to a tensor's `.grad`."""
        part = self._backward.saw()
        if gradient is None:
            return
        if part > len(self._rows):
            self._begin(part)
        row, tensor = self._rows[part - 1], self._tensors[index]
        self._twice |= row.reached[index]
        row.reached[index] = True
        if part == 1 and self._ranks == 1 and tensor.parameter.grad is None:
            self._in_grad.append(tensor)
            return
        self._held.append((row, tensor, gradient))
        self._held_bytes += gradient.numel() * gradient.element_size()
        if self._held_bytes > HELD_BYTES:
            self._measure()

    def _begin(self, part: int) -> None:
        """Nothing of this part has been added yet: `.grad` is what the first brought."""
        if self._in_grad:
            first = self._rows[0]
            self._held += [(first, t, t.parameter.grad) for t in self._in_grad if t.parameter.grad is not None]
            self._in_grad.clear()
            self._measure()
        while len(self._rows) < part:
            row = self._spare.pop() if self._spare else _Row(self._layers, len(self._tensors))
            row.clear()
            self._rows.append(row)

    def _measure(self) -> None:
        """Measure the gradients that are held, and let them go."""
        with torch.no_grad(), OneThread():
            self._one_by_one(self._compiled() if self._fused is not None else self._held)
        self._held = []
        self._held_bytes = 0

    def _compiled(self) -> list[tuple[_Row, WatchedTensor, Tensor]]:
        """Measure what the compiled pass can of what is held; returns the rest."""
        assert self._fused is not None
        rest = []
        for row in dict.fromkeys(row for row, _, _ in self._held):
            own = [(tensor, gradient) for its, tensor, gradient in self._held if its is row]
            found = self._fused.squares(own)
            if found is None:
                return self._held
            sums, layers, left = found
            if layers:
                row.slots(CPU)
                row.results[CPU].numpy()[layers] = sums
            rest += [(row, *own[index]) for index in left]
        return rest

    def _one_by_one(self, held: Sequence[tuple[_Row, WatchedTensor, Tensor]]) -> None:
        alike: dict[tuple[Any, ...], list[tuple[WatchedTensor, Tensor]]] = {}
        for row, tensor, gradient in held:
            size = gradient.numel()
            if size <= SMALL and not gradient.is_sparse and gradient.dtype is torch.float32 and len(tensor.pieces) == 1:
                alike.setdefault((size, row, gradient.device), []).append((tensor, gradient))
                continue
            numbers = flat(gradient, tensor.axis)
            slots = row.slots(gradient.device)
            whole = len(tensor.pieces) == 1
            for place, (start, stop) in enumerate(tensor.pieces, tensor.first):
                piece = numbers if whole else numbers[start:stop]
                dot_into(slots[place], piece, piece)
        for (_, row, device), pairs in alike.items():
            row.slots(device)
            columns = placed([tensor.first for tensor, _ in pairs], device)
            row.results[device].index_copy_(0, columns, squares([gradient for _, gradient in pairs]))

    def squares(self) -> list[Tensor] | None:
        """‖h_j‖² of each part j and layer, (K, L) for each device; None where no parts were measured, or a tensor came
        twice in one.

        (It does under reentrant checkpointing, where h_j is never there as a whole.)
        """
        self._measure()
        if len(self._rows) * self._ranks < 2 or self._twice:
            return None
        devices = {device for row in self._rows for device in row.results}
        return [
            torch.stack([row.results.get(device, self._nothing(device)) for row in self._rows]) for device in devices
        ]

    def _nothing(self, device: torch.device) -> Tensor:
        return torch.zeros(self._layers, device=device)


class _Row:
    """Results of one part."""

    def __init__(self, layers: int, tensors: int) -> None:
        self._layers = layers
        self.results: dict[torch.device, Tensor] = {}
        self._slots: dict[torch.device, tuple[Tensor, ...]] = {}
        self.reached = [False] * tensors

    def clear(self) -> None:
        for results in self.results.values():
            results.zero_()
        self.reached = [False] * len(self.reached)

    def slots(self, device: torch.device) -> tuple[Tensor, ...]:
        if device not in self._slots:
            self.results[device] = torch.zeros(self._layers, device=device)
            self._slots[device] = self.results[device].unbind(0)
        return self._slots[device]


def node_of(parameter: Tensor) -> Any:
    """The node that adds to the parameter's `.grad`; it must be kept alive for its hooks to stay."""
    return get_gradient_edge(parameter).node
