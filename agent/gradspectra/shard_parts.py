"""Parts of sharded parameters: hooks on them never run, but those on the whole tensors that autograd sees do.

fully_shard puts one whole tensor, always the same, in the place of a sharded parameter while its module runs. What a
part of this rank brings to it is there before the ranks' gradients are averaged, as under DistributedDataParallel; here
every rank measures its parts, so that none is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from gradspectra.backward import Backward
from gradspectra.guard import Guard
from gradspectra.inventory import WatchedTensor
from gradspectra.parts import PartSquares
from gradspectra.scalars import Number

Entry = tuple[nn.Module, str, WatchedTensor]


class WholeTensors:
    """Finds, in forward passes, the whole tensors of sharded parameters; looks no more once it has all."""

    def __init__(self, models: Sequence[nn.Module], tensors: Sequence[WatchedTensor], guard: Guard) -> None:
        self.found: dict[int, WatchedTensor] = {}
        """By index of their first layer: tensors whose parameter is the whole one."""
        self._guard = guard
        self._count = len(tensors)
        self._missing = _by_module(models, {id(tensor.parameter): tensor for tensor in tensors})
        self._handle: Any = register_module_forward_hook(self._hook)

    def _hook(self, module: nn.Module, _: Any, __: Any) -> None:
        if id(module) in self._missing:
            self._guard.run("parts", self._look, id(module))

    def _look(self, module: int) -> None:
        for owner, name, tensor in self._missing[module]:
            parameter = owner._parameters.get(name)
            if tensor.first not in self.found and parameter is not None and not hasattr(parameter, "placements"):
                self.found[tensor.first] = replace(tensor, parameter=parameter, pieces=tensor.whole)
        left = [entry for entry in self._missing[module] if entry[2].first not in self.found]
        if left:
            self._missing[module] = left
        else:
            del self._missing[module]
        if len(self.found) == self._count:
            self.close()

    def close(self) -> None:
        """Look no more."""
        self._missing.clear()
        self._handle.remove()


def _by_module(models: Sequence[nn.Module], watched: Mapping[int, WatchedTensor]) -> dict[int, list[Entry]]:
    """The watched parameters of each module and of the modules in it, by identity of the module."""
    found: dict[int, list[Entry]] = {}
    for model in models:
        for module in model.modules():
            entries = [
                (owner, name, watched[id(parameter)])
                for owner in module.modules()
                for name, parameter in owner._parameters.items()
                if id(parameter) in watched
            ]
            if entries:
                found[id(module)] = entries
    return found


class ShardParts:
    """Σⱼ ‖h_j‖²/w_j over this rank's parts of sharded layers, for the steps it is armed for."""

    def __init__(
        self,
        models: Sequence[nn.Module],
        tensors: Sequence[WatchedTensor],
        layers: int,
        backward: Backward,
        guard: Guard,
        ranks: int,
    ) -> None:
        self._models = models
        self._layers = layers
        self._backward = backward
        self._guard = guard
        self._ranks = ranks
        self._whole = WholeTensors(models, tensors, guard)
        self._squares: PartSquares | None = None
        self._known = 0

    def arm(self) -> None:
        """Measure the backward passes to come, of the tensors that a forward pass has shown."""
        found = self._whole.found
        if len(found) > self._known:
            self._known = len(found)
            several = max(self._ranks, 2)  # one rank alone too takes the gradient out of `.grad` after each pass
            tensors = list(found.values())
            self._squares = PartSquares(tensors, self._layers, self._backward, self._guard, several)
        if self._squares is not None:
            self._squares.arm()

    @property
    def armed(self) -> bool:
        """Whether parts are being measured."""
        return self._squares is not None and self._squares.armed

    @property
    def seconds(self) -> float:
        """What the hooks took of the backward passes of this step."""
        return 0.0 if self._squares is None else self._squares.seconds

    def disarm(self) -> None:
        """Measure no more."""
        if self._squares is not None:
            self._squares.rest()

    def sums(self, weights: Sequence[Number]) -> Tensor:
        """Of all ranks' part_sq what this rank brings, (L,) float64 on the host; to be added up over the ranks.

        weights: of this rank's parts as they were logged, or [] for equal ones. Raises ValueError, with the reason,
        where the parts cannot be measured.
        """
        assert self._squares is not None
        passes = self._backward.passes
        squares = self._squares.squares()
        given = [float(weight) for weight in weights] or [1.0] * passes
        if not _averaged_by_ranks(self._models, self._ranks):
            raise ValueError("the gradients are divided by something else than the number of ranks")
        if squares is None or any(len(rows) != passes for rows in squares) or len(given) != passes:
            raise ValueError("the hooks did not see each backward pass once")
        if not min(given) > 0:
            raise ValueError(f"the parts' weights must be above 0, got {given}")
        share = torch.tensor(given, dtype=torch.float64, device="cpu") / sum(given)
        total = torch.zeros(self._layers, dtype=torch.float64, device="cpu")
        for rows in squares:
            total += (rows.double().cpu() / share[:, None]).sum(0)
        return total / self._ranks

    def close(self) -> None:
        """Take all hooks away."""
        self._whole.close()
        self.disarm()


def _averaged_by_ranks(models: Sequence[nn.Module], ranks: int) -> bool:
    """Whether fully_shard divides gradients by the number of ranks, as it does unless told otherwise."""
    for module in (module for model in models for module in model.modules()):
        state = module._get_fsdp_state() if hasattr(module, "_get_fsdp_state") else None  # type: ignore[operator]
        groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
        if any(getattr(group, "gradient_divide_factor", None) not in (None, ranks) for group in groups):
            return False
    return True
