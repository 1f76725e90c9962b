"""The arithmetic of the second tier: numbers of a few layers beyond their norms, on their device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradspectra.compiling import MOST_BLOCKS
from gradspectra.flat import CHUNK, dot_into, flat, joined
from gradspectra.inventory import Inventory, WatchedTensor
from gradspectra.shards import local
from gradspectra.updates import Update, adam_moments, dot_of, square_into

ROWS = (
    "grad_l1",
    "grad_zero_rows",
    "grad_dot_weight",
    "update_dot_grad",
    "moment_sq",
    "second_moment",
    "second_moment_median",
    "rounding_lost",
    "intended_sq",
    "act_max",
    "act_nonfinite",
)
"""Rows of the results, named after what they become; ‖real update‖² and ‖intended update‖² become rounding_lost."""
OF_GRADIENT, OF_UPDATE, OF_MOMENTS, OF_ROUNDING = slice(0, 3), slice(3, 4), slice(4, 7), slice(7, 9)
OF_SUMS, OF_MEDIAN = slice(4, 6), slice(6, 7)
"""Of the moments what is a sum over all entries, and what is of a sample."""
OF_FORWARD = slice(9, 11)
WITH_GRADIENT = slice(0, 4)
"""Rows that are in proportion to the gradient, or count it."""
SAMPLE = MOST_BLOCKS
"""Entries that a median is taken of at most."""


def units(shape: Sequence[int], axis: int) -> int:
    """How many output units a tensor of this shape has: its length on `axis`, 1 for a single number."""
    return int(shape[axis]) if len(shape) else 1


def unit_pieces(tensor: WatchedTensor, inventory: Inventory) -> list[tuple[int, int, int]]:
    """Per layer of a tensor: its first number here, its output units here, and the numbers of each."""
    found = []
    layers = inventory.table.layers[tensor.first :]
    for layer, (start, stop), (first, last) in zip(layers, tensor.pieces, tensor.whole, strict=False):
        each = (last - first) // units(layer.shape, tensor.axis)
        found.append((start, (stop - start) // each, each))
    return found


def _by_layer(tensors: Sequence[WatchedTensor], rows: Callable[[int, int, int], Tensor]) -> Tensor:
    """Rows of all layers, side by side. rows(first, last, n): those of n layers in elements [first, last).

    tensors: one with its pieces, or several alike with one piece each, which lie one after another.
    """
    if len(tensors) > 1:
        return rows(0, sum(tensor.pieces[0][1] for tensor in tensors), len(tensors))
    found = [rows(first, last, 1) for first, last in tensors[0].pieces]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def gradient_rows(tensors: Sequence[WatchedTensor], counts: Sequence[int], repair: bool) -> Tensor:
    """OF_GRADIENT of tensors that all have a dense gradient: (3, L) float32, a column per layer.

    counts: output units of each layer. repair: some entries are not finite; sums are then of the others. Sums in
    float32 or wider.
    """
    gradient, weight = _gradient(tensors), joined([local(tensor.parameter) for tensor in tensors], tensors[0].axis)
    left = iter(counts)

    def rows(first: int, last: int, layers: int) -> Tensor:
        matrix, own = gradient[first:last].view(layers, next(left), -1), weight[first:last]
        sizes = _sums(matrix)
        idle = (sizes == 0).sum(1)  # a NaN is no zero: counted before the repair
        if repair:
            lost = ~matrix.isfinite()
            matrix, own = matrix.masked_fill(lost, 0.0), own.masked_fill(flat(lost), 0.0)
            sizes = _sums(matrix)
        return torch.stack([sizes.sum(1).float(), idle.float(), dots(flat(matrix), own, layers)])

    return _by_layer(tensors, rows)


def update_rows(tensors: Sequence[WatchedTensor], update: Update, scratch: Tensor) -> Tensor:
    """OF_UPDATE, the inner product of update and gradient: (1, L). update: of these tensors; scratch: a temporary."""
    direction, factor = update
    gradient = _gradient(tensors)

    def rows(first: int, last: int, layers: int) -> Tensor:
        if layers > 1:
            moved = direction(first, last, scratch[: last - first])
            sums = moved.mul_(gradient).view(layers, -1).sum(1)
        else:
            sums = dot_of(direction, gradient, first, last, scratch).view(1)
        return (sums * -factor).float().view(1, layers)

    return _by_layer(tensors, rows)


def moment_rows(tensors: Sequence[WatchedTensor], optimizer: Any, with_median: bool) -> Tensor | None:
    """OF_MOMENTS: (3, L); without the median OF_SUMS, (2, L).

    None where the optimizer keeps none that are known, or the tensors took different steps.
    """
    moments = adam_moments(optimizer, tensors)
    if moments is None:
        return None
    m, v, of_m, of_v = moments
    wide = torch.promote_types(v.dtype, torch.float32)

    def rows(first: int, last: int, layers: int) -> Tensor:
        first_moment, second = m[first:last], v[first:last].view(layers, -1)
        squares = dots(first_moment, first_moment, layers) / (of_m * of_m)
        found = [squares, second.sum(1, dtype=wide) / of_v]
        if with_median:
            median = _median(second[:, :: -(-second.shape[1] // SAMPLE) | 1].to(wide))
            found.append((median / of_v).sqrt_())
        return torch.stack(found).float()

    return _by_layer(tensors, rows)


def rounding_rows(tensor: WatchedTensor, before: Tensor, update: Update, scratch: Tensor) -> Tensor:
    """OF_ROUNDING, ‖real update‖² and ‖intended update‖²: (2, L). before: the weights before the step, flat."""
    direction, factor = update
    after = flat(local(tensor.parameter), tensor.axis)

    def rows(first: int, last: int, _: int) -> Tensor:
        real, intended = scratch.new_zeros(2).unbind(0)
        for start in range(first, last, len(scratch)):
            stop = min(start + len(scratch), last)
            moved = after[start:stop].float() - before[start:stop].float()
            real += torch.dot(moved, moved)
        square_into(intended, direction, first, last, scratch)
        return torch.stack([real, intended * factor * factor]).float().view(2, 1)

    return _by_layer([tensor], rows)


def moved_rows(tensor: WatchedTensor, before: Tensor, scratch: Tensor) -> Tensor:
    """‖ΔW‖² and ⟨ΔW, ḡ⟩ of what a step has really done to a tensor: (2, L). before: the weights before it, flat."""
    after, gradient = flat(tensor.parameter.detach(), tensor.axis), _gradient([tensor])

    def rows(first: int, last: int, _: int) -> Tensor:
        sums = scratch.new_zeros(2)
        square, product = sums.unbind(0)
        for start in range(first, last, len(scratch)):
            stop = min(start + len(scratch), last)
            moved = scratch[: stop - start].copy_(after[start:stop]).sub_(before[start:stop])
            square += torch.dot(moved, moved)
            product += torch.dot(moved, gradient[start:stop].to(moved.dtype))
        return sums.float().view(2, 1)

    return _by_layer([tensor], rows)


def _gradient(tensors: Sequence[WatchedTensor]) -> Tensor:
    gradients = [local(tensor.parameter.grad) for tensor in tensors if tensor.parameter.grad is not None]
    return joined(gradients, tensors[0].axis)


def _sums(gradient: Tensor) -> Tensor:
    """Σ |g| of each unit. On a CPU a 1-norm takes nine times as long as the sum of absolute values."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    if gradient.device.type != "cpu":
        sums: Tensor = torch.linalg.vector_norm(gradient, 1, dim=2, dtype=wide)
        return sums
    at_once = max(CHUNK // gradient.shape[2], 1)
    return torch.cat([some.abs().sum(2, dtype=wide) for some in torch.split(gradient, at_once, 1)], 1)


def _median(numbers: Tensor) -> Tensor:
    """The median of each row, the lower of two; NaN where there is one."""
    if numbers.device.type == "cpu":
        return numbers.median(1).values
    ordered = numbers.sort(1).values  # median is not deterministic everywhere
    largest = ordered[:, -1]  # a NaN, where there is one
    return torch.where(largest.isnan(), largest, ordered[:, (numbers.shape[1] - 1) // 2])


def dots(a: Tensor, b: Tensor, layers: int) -> Tensor:
    """⟨a, b⟩ of each of the layers that lie one after another in both: (layers,) float32."""
    if layers > 1:
        return (a * b).view(layers, -1).sum(1).float()
    slot = torch.empty((), dtype=torch.float32, device=a.device)
    dot_into(slot, a, b)
    return slot.view(1)
