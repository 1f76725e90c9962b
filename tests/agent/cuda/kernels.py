"""Triton's kernels without a CUDA device: its interpreter runs them on the host, also for the simulated device."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from agent.cuda.simulated import DEVICE, OnDevice
from gradspectra import accelerated, device_build, device_pass
from torch.utils._python_dispatch import _disable_current_modes

NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
NEEDS_INTERPRETER = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with a CUDA device the kernels are compiled, and tested in test_cuda.py"
)


class AtOnce:
    """A thread that is done when it is started."""

    def __init__(self, target: Any, args: Any, **_: Any) -> None:
        self.start = lambda: target(*args)


def on_simulated(monkeypatch: pytest.MonkeyPatch) -> device_build.Build:
    """Let the kernels measure what lies on the simulated device; the build that does."""
    device_build.build_on.cache_clear()
    monkeypatch.setattr(accelerated, "FOR_KERNELS", ("meta",))
    monkeypatch.setenv("GRADSPECTRA_FUSED", "triton")
    monkeypatch.setattr(device_pass, "PLAIN", device_pass.PLAIN | {OnDevice})
    monkeypatch.setattr(device_build, "Thread", AtOnce)
    monkeypatch.setattr(OnDevice, "data_ptr", lambda self: self.host.data_ptr(), raising=False)
    launch = device_build.Kernels._launch

    def on_host(self: Any, kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
        hosts = [argument.host if isinstance(argument, OnDevice) else argument for argument in arguments]
        with _disable_current_modes(), np.errstate(all="ignore"):
            launch(self, kernel, grid, *hosts, **constants)

    monkeypatch.setattr(device_build.Kernels, "_launch", on_host)
    return device_build.build_on(DEVICE)
