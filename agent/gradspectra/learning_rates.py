"""From suggested multipliers per layer to the parameter groups of an optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")
"""What wrappers put before or inside a parameter's name."""


def groups_of(
    model: Any, suggestions: Iterable[dict[str, Any]], layers: set[str], learning_rate: float | None
) -> list[dict[str, Any]]:
    """Group a model's trainable parameters by their suggested multiplier, in the order of the model.

    suggestions: as the server lists them; layers: the run's layer names. A tensor with several named blocks gets the
    geometric mean of theirs. Raises ValueError where none of the model's names is among the layers.
    """
    suggested = _multipliers(suggestions)
    known = {tensor_name(layer) for layer in layers}
    groups: dict[float, dict[str, Any]] = {}
    found = False
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = unwrapped(name)
        found = found or plain in known
        multiplier = suggested.get(plain, 1.0)
        group = groups.setdefault(multiplier, {"params": [], "layers": [], "multiplier": multiplier})
        group["params"].append(parameter)
        group["layers"].append(plain)
    if not found:
        raise ValueError("none of the model's trainable parameters is a layer of this run; is it the same model?")
    if learning_rate is not None and math.isfinite(learning_rate):
        for group in groups.values():
            group["lr"] = learning_rate * group["multiplier"]
    return list(groups.values())


def _multipliers(suggestions: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Tensor name → multiplier, of the suggestions that have enough evidence."""
    logs: dict[str, list[float]] = {}
    for suggestion in suggestions:
        value, layer = suggestion["value"], suggestion["layer"]
        if suggestion["quantity"] != "learning_rate_multiplier" or not suggestion["enough_evidence"]:
            continue
        if layer is not None and isinstance(value, (int, float)) and value > 0:
            logs.setdefault(tensor_name(layer), []).append(math.log(value))
    return {name: math.exp(sum(values) / len(values)) for name, values in logs.items()}


def tensor_name(layer: str) -> str:
    """Return the tensor's name of a layer that may be a block of it: `qkv.weight[q]` → `qkv.weight`."""
    return unwrapped(layer.split("[", 1)[0])


def unwrapped(name: str) -> str:
    """Return a parameter's name without what wrappers of the model add to it."""
    for wrapper in WRAPPERS:
        while name.startswith(wrapper):
            name = name.removeprefix(wrapper)
        name = name.replace(f".{wrapper}", ".")
    return name
