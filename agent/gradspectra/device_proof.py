"""Whether kernels measure made-up layers as torch does: they are asked before they see anything of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gradspectra.device_table import ADAM, GRADIENT_ALONE, LINEAR, NUMBERS, WORDS, DeviceLayout, Spec, there

if TYPE_CHECKING:
    from gradspectra.device_build import Kernels

UNITS, LONGEST = 7, 601
"""Of a made-up layer: its rows, and the numbers of each at most."""
SCALE, EPSILON, DECAY, FACTOR, OF_FIRST, OF_SECOND = 0.5, 1e-3, 0.25, 2.0, 0.5, 0.25
BETAS, STEPS = (0.9, 0.99), 3
"""Of every second layer, which has its steps on the device, and entries that are not finite."""


def proved(kernels: Kernels, specs: Sequence[Spec], device: torch.device) -> Tensor:
    """Measure layers for each of these by kernels and by torch; whether both agree, one number on the device."""
    agree = []
    for rule in sorted({rule for _, _, rule in specs}):
        kinds = [own for own, _, its in specs if its == rule for _ in range(2)]
        each = [min(width, LONGEST) if width < 256 else LONGEST for _, width, its in specs if its == rule]
        shapes = [(UNITS, length) for length in each for _ in range(2)]
        layers = [
            _made_up(own, length, bool(at % 2), device)
            for at, (own, (_, length)) in enumerate(zip(kinds, shapes, strict=True))
        ]
        steps = torch.full((), float(STEPS), dtype=torch.float32, device=device)
        words = np.zeros((len(layers), WORDS), np.int64)
        words[:, :4] = [[numbers.data_ptr() for numbers in layer] for layer in layers]
        words[1::2, 4] = steps.data_ptr()
        own = SCALE, EPSILON, DECAY, FACTOR, OF_FIRST, OF_SECOND, *np.log(BETAS)
        words.view(np.float64)[:, NUMBERS:] = own
        results = torch.zeros(5, len(layers), dtype=torch.float32, device=device)
        finite = torch.zeros(2, len(layers), dtype=torch.float64, device=device)
        second = torch.zeros(7, len(layers), dtype=torch.float32, device=device)
        layout = DeviceLayout(shapes, kinds, np.arange(len(layers)), device)
        kernels.measure(layout, there(words, device), rule, results, finite, second)
        found = torch.cat([results.double(), finite, second.double()])
        expected = torch.stack([_by_torch(layer, rule, bool(at % 2)) for at, layer in enumerate(layers)], 1)
        agree.append(torch.isclose(found, expected, rtol=1e-4, atol=1e-3, equal_nan=True).all())
    return torch.stack(agree).all().float()


def _made_up(kinds: Sequence[torch.dtype], length: int, broken: bool, device: torch.device) -> list[Tensor]:
    """Gradient with a row of zeros, weights, and two more, the last above 0.

    broken: of the gradient an infinity and a NaN, which make a weight NaN.
    """
    numbers = torch.arange(UNITS * length, dtype=torch.float64, device=device).view(UNITS, length)
    made = [(numbers * speed).sin() for speed in (0.7, 0.3, 1.1, 0.2)]
    made[0][2] = 0.0
    if broken:
        made[0][4, :1], made[0][5, :1], made[1][4, :1] = float("inf"), float("nan"), float("nan")
    made[3] = made[3].square() + 0.1
    return [own.to(kind) for own, kind in zip(made, kinds, strict=True)]


def _by_torch(layer: Sequence[Tensor], rule: int, counted_there: bool) -> Tensor:
    """Columns of results, finite and second, one after another: (14,) float64."""
    g, w, first, second = (numbers.double() for numbers in layer)
    scale, epsilon, of_first, of_second = SCALE, EPSILON, OF_FIRST, OF_SECOND
    if counted_there:
        of_first, of_second = (1 - beta**STEPS for beta in BETAS)
        scale, epsilon = of_first / of_second**0.5, EPSILON * of_first
    kept = torch.where(g.isfinite(), g, 0.0)
    largest, lost = kept.abs().max(), (~g.isfinite()).sum()
    of_gradient = [g.square().sum(), -largest, largest]
    if rule == GRADIENT_ALONE:
        return torch.stack([*of_gradient, *g.new_zeros(2), lost.double(), kept.square().sum(), *g.new_zeros(7)])
    moved, along = torch.zeros_like(g), torch.zeros_like(g)
    if rule == ADAM:
        moved = first / (scale * second.sqrt() + epsilon) + DECAY * w
    elif rule == LINEAR:
        moved = scale * g + epsilon * first + DECAY * w
    if rule in (ADAM, LINEAR):
        along = moved * g
    moments = [first.square().sum() / of_first**2, second.sum() / of_second] if rule == ADAM else g.new_zeros(2)
    of_update = [
        kept.abs().sum(),
        (g == 0).all(1).sum().double(),
        torch.where(g.isfinite(), g * w, 0.0).sum(),
        -FACTOR * along.sum(),
    ]
    sums = [*of_gradient, w.square().sum(), moved.square().sum(), lost.double(), kept.square().sum()]
    return torch.stack([*sums, *of_update, *moments, g.new_full((), of_second)])
