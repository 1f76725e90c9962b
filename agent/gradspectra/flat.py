"""Sums over tensors in pieces that stay in cache and on one thread, so that nothing waits and nothing large is made."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

CHUNK = 1 << 16
"""Elements of a temporary: 256 KiB in float32, which a core's second-level cache holds."""
ACCELERATOR_CHUNK = 1 << 24
"""Elements of a temporary on an accelerator: 64 MiB in float32, few enough kernels even for large tensors."""


_given = threading.local()


class OneThread:
    """Work on a CPU with this thread alone, as long as the block lasts.

    The agent's operations are short: on two cores a second thread gains nothing, and where the cores are busy each
    operation would wait until the second thread gets its turn (an eigenvalue problem of 0.5 ms took 115 ms).
    """

    __slots__ = ("_threads",)

    def __enter__(self) -> None:
        self._threads = torch.get_num_threads()
        if self._threads > 1:
            _given.threads = self._threads
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        if self._threads > 1:
            torch.set_num_threads(self._threads)
            _given.threads = 1


def given_threads() -> int:
    """How many threads the training's own operations have, within a block of OneThread as outside of it."""
    threads = torch.get_num_threads()
    return threads if threads > 1 else getattr(_given, "threads", 1)


def chunk(device: torch.device) -> int:
    """Elements of a temporary on this device at most."""
    return CHUNK if device.type == "cpu" else ACCELERATOR_CHUNK


def widest(device: torch.device) -> torch.dtype:
    """The widest type that a device computes in."""
    return torch.float32 if device.type == "mps" else torch.float64


class Scratch:
    """A temporary for each device and accuracy, kept: CHUNK elements, on an accelerator as many as were needed."""

    def __init__(self) -> None:
        self._kept: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def of(self, parameter: Tensor) -> Tensor:
        """The one for this parameter: float32, or float64 where it is as wide."""
        dtype = torch.float64 if parameter.dtype in (torch.float64, torch.complex128) else torch.float32
        key = parameter.device, dtype
        needed = max(min(2 * parameter.numel(), chunk(parameter.device)), CHUNK)  # 2: real and imaginary parts
        if key not in self._kept or len(self._kept[key]) < needed:
            self._kept[key] = torch.empty(needed, dtype=dtype, device=parameter.device)
        return self._kept[key]


def placed(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Whole numbers as a tensor on a device, (n,) int64. From memory that is not pinned, a copy would wait for it."""
    here = torch.tensor(numbers, device="cpu", pin_memory=device.type == "cuda")
    return here.to(device, non_blocking=True)


def flat(tensor: Tensor, axis: int = 0) -> Tensor:
    """The tensor's numbers as a vector, those of one index on `axis` together; a view wherever memory allows.

    A sparse tensor gives its stored numbers, a complex one real and imaginary parts.
    """
    if tensor.is_sparse:
        tensor = tensor.coalesce().values()
    if axis:
        tensor = tensor.transpose(0, axis)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1)


def joined(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """The numbers of one tensor, or of several one after another, as a vector."""
    return flat(tensors[0], axis) if len(tensors) == 1 else torch.cat([flat(tensor, axis) for tensor in tensors])


def dot_into(slot: Tensor, a: Tensor, b: Tensor) -> None:
    """Write ⟨a, b⟩, summed in float32 or wider, into the 0-dimensional float32 tensor slot."""
    if a.dtype is torch.float32 and b.dtype is torch.float32:
        torch.dot(a, b, out=slot)
    elif a.dtype is torch.float64:
        slot.copy_(torch.dot(a, b.double()))
    else:
        slot.zero_()
        most = chunk(a.device)
        for start in range(0, a.numel(), most):
            slot.add_(torch.dot(a[start : start + most].float(), b[start : start + most].float()))


def extremes(a: Tensor) -> tuple[float, float]:
    """The smallest and the largest number of a on the host, floating point and not empty; NaN if there is one."""
    if a.dtype in (torch.float32, torch.float64):
        numbers = a.detach().resolve_neg().numpy()  # its own take a third of the time of torch's
        with np.errstate(invalid="ignore"):
            return float(numbers.min()), float(numbers.max())
    smallest, largest = torch.aminmax(a)
    return smallest.item(), largest.item()


def extremes_into(low: Tensor, high: Tensor, a: Tensor) -> None:
    """Write the `extremes` of a, on the host, into two 0-dimensional float32 tensors."""
    if a.dtype is torch.float32:
        smallest, largest = extremes(a)
        low.fill_(smallest)
        high.fill_(largest)
    else:
        found = torch.aminmax(a)
        low.copy_(found.min)
        high.copy_(found.max)
