"""Memory that the training holds at the end of a step, from counters on the host: nothing waits for a device."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch

from gradspectra.step import OpenStep

_PAGES = "/proc/self/statm"
_KNOWN = os.path.exists(_PAGES)


def add_memory(step: OpenStep, devices: Sequence[torch.device]) -> None:
    """Add the memory held to a step that has layer numbers, and its time to theirs. devices: as for `memory_held`."""
    if step.due:
        began = time.perf_counter()
        step.counts |= memory_held(devices)
        step.layers_cost += time.perf_counter() - began


def memory_held(devices: Sequence[torch.device], cuda: Any = torch.cuda) -> dict[str, int]:
    """Bytes by the name of the count: of tensors on CUDA devices, or without one those resident in this process.

    devices: the CUDA devices that the model lies on; what they hold is added up. Nothing where neither is known, as
    without /proc. cuda: torch's module.
    """
    if not devices:
        return {"process_memory_bytes": _resident()} if _KNOWN else {}
    found = [cuda.memory_stats_as_nested_dict(device)["allocated_bytes"]["all"] for device in devices]
    return {
        "device_memory_bytes": sum(held["current"] for held in found),
        "device_memory_peak_bytes": sum(held["peak"] for held in found),
    }


def _resident() -> int:
    """Bytes of physical memory that this process has. Source: proc(5), the second number of statm, in pages."""
    file = os.open(_PAGES, os.O_RDONLY)
    try:
        return int(os.read(file, 200).split()[1]) * os.sysconf("SC_PAGE_SIZE")
    finally:
        os.close(file)
