"""The updates that an optimizer has made, as the kernels on a device read them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gradspectra.inventory import WatchedTensor
from gradspectra.updates import Group, State, UpdateTerms

STEPS_THERE = 0.5
"""Stands for a number of steps that the device alone knows: no host counts it."""


class DeviceTerms(UpdateTerms):
    """As UpdateTerms, for kernels which read how many steps a tensor has taken where that is kept on the device.

    Of such tensors the coefficients say the rule, decay and factor; exponents: (ln β₁, ln β₂) and ε for the rest.
    """

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        self.exponents: list[tuple[float, float, float]] = []

    def steps_there(self, tensor: WatchedTensor) -> Tensor | None:
        """How many steps a tensor has taken, where the device alone knows it."""
        step = (self._state.get(tensor.parameter) or {}).get("step") if self._adam else None
        return step if isinstance(step, Tensor) and not step.is_cpu else None

    def _steps(self, state: State) -> Any:
        step = state.get("step")
        return STEPS_THERE if isinstance(step, Tensor) and not step.is_cpu else super()._steps(state)

    def _add(self, key: tuple[int, Any], group: Group) -> int | None:
        place = super()._add(key, group)
        if place is not None:
            first, second = group["betas"] if self._adam else (1.0, 1.0)
            logs = [math.log(beta) if beta > 0 else -math.inf for beta in (first, second)]
            self.exponents.append((logs[0], logs[1], float(group.get("eps", 0.0))))
        return place
