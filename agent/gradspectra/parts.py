"""The parts of a step: the squared norm of what each backward pass brought to a layer.

It comes from a hook that runs before the node which adds to `.grad`, as that which counts the passes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradspectra.backward import Backward, node_of
from gradspectra.bundles import SMALL, squares
from gradspectra.capture import capturing
from gradspectra.flat import OneThread, dot_into, flat, placed
from gradspectra.fused import CPU, FusedPass
from gradspectra.guard import Guard
from gradspectra.inventory import WatchedTensor

LATELY = 2
"""After so many steps of one part in a row no other is expected to have several; the last of an epoch may have one."""
WITNESSES, WITNESS_ENTRIES = 3, 4096
"""So many of the smallest tensors, of at most so many entries, tell whether the gradient is the sum of its parts."""
ASTRAY = 0.01
"""It is not where it differs from what is known of scaling and clipping by more than this."""
HELD_BYTES = 1 << 20
"""Gradients of a part that are held at most until they are measured together."""


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
        self._dropped = 0
        real = [i for i, t in enumerate(tensors) if t.parameter.is_floating_point()]
        small = [i for i in real if tensors[i].parameter.numel() <= WITNESS_ENTRIES]
        self._witnesses = frozenset(sorted(small, key=lambda i: tensors[i].parameter.numel())[:WITNESSES])
        self._sums: dict[int, Tensor] = {}
        """What the parts have brought to these tensors, by index."""
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
        """Forget the measured parts, and what they took."""
        self._forget()
        self.seconds = 0.0

    def _forget(self) -> None:
        self._spare.extend(self._rows)
        self._rows = []
        self._held.clear()
        self._held_bytes = 0
        self._in_grad.clear()
        self._sums.clear()
        self._twice = False
        self._dropped = self._backward.dropped

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
        part = self._backward.saw(None if gradient is None else self._tensors[index].parameter)
        if self._dropped != self._backward.dropped:  # what the passes before brought is no part of the step
            self._forget()
        if gradient is None:
            return
        if part > len(self._rows):
            self._begin(part)
        row, tensor = self._rows[part - 1], self._tensors[index]
        self._twice |= row.reached[index]
        row.reached[index] = True
        if index in self._witnesses and self._ranks == 1 and not gradient.is_sparse:
            own, known = gradient.detach(), self._sums.get(index)
            self._sums[index] = own.clone() if known is None else known.add_(own)
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

    def share(self) -> Tensor | None:
        """How much of the sum of its parts the gradient is now: 1 unless it was scaled since; None where not known."""
        if not self.armed:
            return None
        found = [(own, self._tensors[index].parameter.grad) for index, own in self._sums.items()]
        pairs = [(own.float(), g.float()) for own, g in found if g is not None and not g.is_sparse]
        pairs = [pair for pair in pairs if pair[0].device == pairs[0][0].device]
        if not pairs:
            return None
        with torch.no_grad(), OneThread():
            whole, now = (torch.cat([one.flatten() for one in side]) for side in zip(*pairs, strict=True))
            return torch.dot(now, whole) / torch.dot(whole, whole)

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
        return torch.zeros(self._layers, dtype=torch.float32, device=device)


def astray(share: float, factors: Sequence[float]) -> bool:
    """Whether something that nobody knows of has scaled the gradient since its parts were measured.

    share: see PartSquares.share, NaN where they were zero or not finite. factors: what may have scaled it.
    """
    return math.isfinite(share) and all(abs(share - factor) > ASTRAY * factor for factor in factors)


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
            self.results[device] = torch.zeros(self._layers, dtype=torch.float32, device=device)
            self._slots[device] = self.results[device].unbind(0)
        return self._slots[device]
