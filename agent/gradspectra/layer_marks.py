"""What the results of the first tier do not say of its layers: gradients that are not finite, updates not known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from gradspectra_core.records import Bool, Float64
from torch import Tensor


@dataclass(slots=True)
class FiniteGradient:
    """What is left of a layer's gradient where some of its numbers are not finite."""

    nonfinite: int
    square: float
    largest: float
    any_finite: bool


@dataclass(slots=True)
class LayerMarks:
    """What the results on the device do not say of L layers.

    gradient, update: (L,) whether the layer had a gradient, whether its update is known. factor: (L,) what to
    multiply the square of the update's direction by. repaired: by index, the layers whose sum of squares was not
    finite.
    """

    gradient: Bool
    update: Bool
    factor: Float64
    repaired: dict[int, FiniteGradient] = field(default_factory=dict)

    @classmethod
    def none(cls, layers: int) -> LayerMarks:
        """Nothing measured yet."""
        return cls(np.zeros(layers, np.bool_), np.zeros(layers, np.bool_), np.ones(layers))


def finite_gradient(numbers: Tensor) -> FiniteGradient:
    """Count what is not finite in a vector, and measure the rest."""
    finite = numbers[numbers.isfinite()].to(torch.float32 if numbers.dtype is not torch.float64 else torch.float64)
    nonfinite = numbers.numel() - finite.numel()
    if finite.numel() == 0:
        return FiniteGradient(nonfinite, 0.0, 0.0, False)
    return FiniteGradient(nonfinite, float(torch.dot(finite, finite)), float(finite.abs().max()), True)
