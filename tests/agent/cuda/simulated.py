"""A device that computes on the host and tells what a CUDA stream would have to be waited for.

Tensors of torch's `meta` device that carry their numbers with them: what runs on them gives the numbers that the host
would give, bit for bit. Every operation whose result the host needs, or that copies between host and device, is noted
with the line of the agent that asked for it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import gradspectra
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
AGENT = str(Path(gradspectra.__file__).parent)
WAITS = (
    "_local_scalar_dense",
    "item",
    "equal",
    "is_nonzero",
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
    "bincount",
    "linalg_eigh",
    "_linalg_eigh",
    "_linalg_svd",
    "_linalg_eigvals",
    "linalg_lstsq",
    "repeat_interleave",
    "_coalesce",
)
"""Operations whose result, or its size, the host must know."""
COPIES = ("_to_copy", "copy_")
INDEXING = ("index", "index_put_", "_index_put_impl_", "index_put")


class OnDevice(Tensor):
    """A tensor of the simulated device. host: its numbers."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> OnDevice:
        made: OnDevice = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=DEVICE,
        )
        made.host = host
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a simulated device, outside of its `Simulated`")


@dataclass
class Crossings:
    """What the agent did, each with the line that did it."""

    waits: list[str] = field(default_factory=list)
    """The host waited for the device."""
    to_host: list[str] = field(default_factory=list)
    """Copies to the host."""
    to_device: list[str] = field(default_factory=list)
    """Copies of host memory to the device that would wait unless it is pinned."""
    operations: int = 0


class Simulated(TorchDispatchMode):
    """While it is open, tensors can be made and moved with device="meta", and the agent's crossings are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.agent = Crossings()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("device")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(isinstance(tensor, OnDevice) for tensor in given)
        target = there if wanted is None else torch.device(wanted).type == DEVICE.type
        name = func.overloadpacket.__name__
        self._note(name, args, given, there, target, kwargs)
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        found = func(*tree_map(_host, args), **tree_map(_host, kwargs))
        same = {id(_host(tensor)): tensor for tensor in given}

        def back(result: Any) -> Any:
            if not isinstance(result, Tensor):
                return result
            return same[id(result)] if id(result) in same else OnDevice(result) if target else result

        return tree_map(back, found)

    def _note(
        self, name: str, args: Any, given: list[Tensor], there: bool, target: bool, kwargs: dict[str, Any]
    ) -> None:
        mixed = [tensor for tensor in given if not isinstance(tensor, OnDevice) and tensor.dim() > 0]
        if there and mixed and name not in COPIES + INDEXING:
            raise RuntimeError(f"{name} has tensors on the device and on the host")
        bare = any(tensor.device == DEVICE and not isinstance(tensor, OnDevice) for tensor in given)
        line = _line()
        if bare and line is not None:
            self.agent.to_device.append(f"torch.tensor(..., device=...) at {line}")
        if line is None or not (there or target):
            return
        self.agent.operations += 1
        text = f"{name} at {line}"
        if (there and name in WAITS) or (name in INDEXING and there and _host_must_look(args)):
            self.agent.waits.append(text)
        elif name == "copy_":
            if isinstance(args[1], OnDevice) and not isinstance(args[0], OnDevice):
                self.agent.to_host.append(text)
            elif isinstance(args[0], OnDevice) and not isinstance(args[1], OnDevice):
                self.agent.to_device.append(text)
        elif name == "_to_copy" and there and not target:
            self.agent.to_host.append(text)
        elif name == "_to_copy" and not there and target and not kwargs.get("non_blocking"):
            self.agent.to_device.append(text)

    def put(self, model: nn.Module) -> nn.Module:
        """Move a model here."""
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    here = OnDevice(parameter.detach().clone())
                    module._parameters[name] = nn.Parameter(here, requires_grad=parameter.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = OnDevice(buffer.clone())
        return model


def _host(value: Any) -> Any:
    return value.host if isinstance(value, OnDevice) else value


def _host_must_look(args: Any) -> bool:
    """Whether an index is a mask, whose entries must be counted, or lies on the host and must be copied."""
    places = [place for place in args[1] if isinstance(place, Tensor)]
    return any(place.dtype in (torch.bool, torch.uint8) or not isinstance(place, OnDevice) for place in places)


def _line() -> str | None:
    """The innermost line of the agent that runs now; None where the training runs on its own."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(AGENT):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return None
