"""The one copy to the host of a step: all small results of a device in one vector, read when it has arrived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Readout:
    """Copies of small tensors to the host. From an accelerator they travel without holding up its stream."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._arrays: dict[int, Any] = {}
        self._places: list[tuple[int, torch.device, int, tuple[int, ...]]] = []
        self._copies: dict[torch.device, Tensor] = {}
        self._events: list[torch.Event] = []
        together: dict[torch.device, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.device.type == "cpu":
                value = tensor.item() if tensor.dim() == 0 else tensor.detach().numpy().astype(np.float64)
                self._arrays[id(tensor)] = value
                continue
            group = together.setdefault(tensor.device, [])
            self._places.append((id(tensor), tensor.device, sum(map(Tensor.numel, group)), tuple(tensor.shape)))
            group.append(tensor.detach().reshape(-1))
        for device, group in together.items():
            wide = torch.float32 if all(t.dtype is torch.float32 for t in group) else torch.float64
            self._copies[device] = self._copy(torch.cat([t.to(wide) for t in group]))

    def _copy(self, vector: Tensor) -> Tensor:
        if vector.device.type != "cuda":
            return vector.cpu()
        copy = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
        copy.copy_(vector, non_blocking=True)
        event = torch.Event(vector.device.type)
        event.record()
        self._events.append(event)
        return copy

    def ready(self) -> bool:
        """Whether everything has arrived."""
        return not self._events or all(event.query() for event in self._events)

    def arrays(self) -> dict[int, Any]:
        """The numbers of each tensor in its shape, float64, by the identity of the tensor; waits for them."""
        for event in self._events:
            event.synchronize()
        for key, device, start, shape in self._places:
            vector = self._copies[device][start : start + int(np.prod(shape))]
            self._arrays[key] = vector.numpy().astype(np.float64).reshape(shape)
        self._places.clear()
        return self._arrays
