"""The one copy to the host of a step: all small results of a device in one vector, read when it has arrived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gradspectra_core.records import Float64
from torch import Tensor


class Readout:
    """Copies of small tensors to the host. From an accelerator they travel without holding up its stream."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._arrays: dict[int, Any] = {}
        self._places: list[tuple[int, torch.device, int, tuple[int, ...]]] = []
        self._copies: dict[torch.device, Tensor | Travelling] = {}
        together: dict[torch.device, list[Tensor]] = {}
        for tensor in tensors:
            if tensor.is_cpu:
                own = tensor.detach() if tensor.requires_grad else tensor
                self._arrays[id(tensor)] = own.numpy().astype(np.float64) if own.dim() else own.item()
                continue
            group = together.setdefault(tensor.device, [])
            self._places.append((id(tensor), tensor.device, sum(map(Tensor.numel, group)), tuple(tensor.shape)))
            group.append(tensor.detach().reshape(-1))
        for device, group in together.items():
            wide = torch.float32 if all(t.dtype is torch.float32 for t in group) else torch.float64
            self._copies[device] = self._copy(torch.cat([t.to(wide) for t in group]))

    def _copy(self, vector: Tensor) -> Tensor | Travelling:
        if vector.device.type != "cuda":
            return vector.cpu()
        if vector.device not in _sides:
            _sides[vector.device] = SideStream(vector.device)
        return _sides[vector.device].copy(vector)

    def ready(self) -> bool:
        """Whether everything has arrived."""
        return all(copy.arrived() for copy in self._copies.values() if isinstance(copy, Travelling))

    def arrays(self) -> dict[int, Any]:
        """The numbers of each tensor in its shape, float64, by the identity of the tensor; waits for them."""
        host = {d: c.numbers() if isinstance(c, Travelling) else c.numpy() for d, c in self._copies.items()}
        for key, device, start, shape in self._places:
            self._arrays[key] = host[device][start : start + int(np.prod(shape))].astype(np.float64).reshape(shape)
        for copy in self._copies.values():
            if isinstance(copy, Travelling):
                copy.give_back()
        self._places.clear()
        self._copies.clear()
        return self._arrays


def summed(copies: Sequence[Float64]) -> Float64:
    """The sum of what several devices have brought, each 0 where another has it. No number of it is −0."""
    return copies[0] + 0.0 if len(copies) == 1 else np.sum(copies, axis=0)


class Travelling:
    """A vector on its way to the host. memory: pinned, at least as long; event: recorded after the copy."""

    def __init__(self, memory: Tensor, length: int, event: Any, spare: list[Tensor]) -> None:
        self._memory = memory
        self._length = length
        self._event = event
        self._spare = spare

    def arrived(self) -> bool:
        """Whether it is there; waits for nothing."""
        return bool(self._event.query())

    def numbers(self) -> Any:
        """The numbers, as an array over the memory; waits until they are there."""
        self._event.synchronize()
        return self._memory[: self._length].numpy()

    def give_back(self) -> None:
        """The numbers have been read: another copy may use the memory."""
        self._spare.append(self._memory)


class SideStream:
    """A CUDA stream beside the training's that brings vectors to pinned memory, which is kept for the next ones.

    The training's stream is waited for by this one, never the other way round. cuda: torch's module.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device = device
        self._cuda = cuda
        self._stream = cuda.Stream(device)
        self._spare: dict[tuple[torch.dtype, int], list[Tensor]] = {}

    def copy(self, vector: Tensor) -> Travelling:
        """Bring a vector that the current stream makes."""
        size = 1 << max(len(vector) - 1, 1).bit_length()
        spare = self._spare.setdefault((vector.dtype, size), [])
        memory = spare.pop() if spare else self._memory(size, vector.dtype)
        self._stream.wait_stream(self._cuda.current_stream(self._device))
        with self._cuda.stream(self._stream):
            memory[: len(vector)].copy_(vector, non_blocking=True)
            event = self._stream.record_event()
        vector.record_stream(self._stream)  # its memory is not used anew before the copy is done
        return Travelling(memory, len(vector), event, spare)

    @staticmethod
    def _memory(size: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(size, dtype=dtype, device="cpu", pin_memory=True)


_sides: dict[torch.device, SideStream] = {}
