"""The full names of a model's parameters, without those of what wraps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Models = Mapping[str, nn.Module]


def names(models: Models) -> dict[int, tuple[str, Tensor, str]]:
    """Full name, parameter and kind of its module by the parameter's identity; the first name of tied ones.

    Names are those of the model without the wrappers of torch.compile and DistributedDataParallel.
    """
    found: dict[int, tuple[str, Tensor, str]] = {}
    for prefix, model in models.items():
        wrappers = [path for path, m in model.named_modules(prefix=prefix) if isinstance(m, DistributedDataParallel)]
        for path, module in model.named_modules(prefix=prefix):
            path = _without(wrappers, path)
            path = path.replace("_orig_mod.", "").removesuffix("_orig_mod")
            for name, parameter in module._parameters.items():
                if parameter is not None and id(parameter) not in found:
                    full = f"{path}.{name}" if path else name
                    found[id(parameter)] = (full, parameter, _kind(module))
    return found


def _kind(module: nn.Module) -> str:
    """Name of a module's class; of the class before where fully_shard has made another of it."""
    name = type(module).__name__
    return name.removeprefix("FSDP") if hasattr(module, "set_requires_gradient_sync") else name


def _without(wrappers: Sequence[str], path: str) -> str:
    """A module's path without the `module.` of each wrapper it lies in; wrappers: their paths, outer ones first."""
    for wrapper in reversed(wrappers):
        inner = f"{wrapper}.module" if wrapper else "module"
        if path == inner or path.startswith(f"{inner}."):
            path = f"{wrapper}{path[len(inner) :]}".removeprefix(".")
    return path
