"""The arithmetic of the second tier: numbers of the gradient of a few layers beyond its norm, on their device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradspectra.flat import dot_into, flat, joined
from gradspectra.inventory import WatchedTensor

ROWS = ("grad_l1", "grad_zero_rows", "grad_dot_weight")
"""Rows of the results, named after what they become."""
OF_GRADIENT = slice(0, 3)


def units(shape: Sequence[int], axis: int) -> int:
    """How many output units a tensor of this shape has: its length on `axis`, 1 for a single number."""
    return int(shape[axis]) if len(shape) else 1


def gradient_rows(tensors: Sequence[WatchedTensor], counts: Sequence[int], repair: bool) -> Tensor:
    """OF_GRADIENT of tensors that all have a dense gradient: (3, L) float32, a column per layer.

    tensors: one with its pieces, or several alike with one piece each. counts: output units of each layer. repair:
    some entries are not finite; sums are then of the others. Sums in float32 or wider.
    """
    gradients = [tensor.parameter.grad for tensor in tensors if tensor.parameter.grad is not None]
    axis = tensors[0].axis
    gradient, weight = joined(gradients, axis), joined([tensor.parameter for tensor in tensors], axis)
    if len(tensors) > 1:
        return _rows(gradient.view(len(tensors), counts[0], -1), weight, repair)
    pieces = zip(tensors[0].pieces, counts, strict=True)
    found = [_rows(gradient[first:last].view(1, n, -1), weight[first:last], repair) for (first, last), n in pieces]
    return found[0] if len(found) == 1 else torch.cat(found, 1)


def _rows(gradient: Tensor, weight: Tensor, repair: bool) -> Tensor:
    """gradient: (layers, units, entries of one); weight: as many numbers, flat."""
    sizes = _sums(gradient)
    idle = (sizes == 0).sum(1)  # a NaN is no zero: counted before repair
    if repair:
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)
        sizes = _sums(gradient)
    return torch.stack([sizes.sum(1).float(), idle.float(), dots(flat(gradient), weight, len(gradient))])


def _sums(gradient: Tensor) -> Tensor:
    """Σ |g| of each unit."""
    wide = torch.promote_types(gradient.dtype, torch.float32)
    sums: Tensor = torch.linalg.vector_norm(gradient, 1, dim=2, dtype=wide)
    return sums


def dots(a: Tensor, b: Tensor, layers: int) -> Tensor:
    """⟨a, b⟩ of each of the layers that lie one after another in both: (layers,) float32."""
    if layers > 1:
        return (a * b).view(layers, -1).sum(1).float()
    slot = torch.empty((), device=a.device)
    dot_into(slot, a, b)
    return slot.view(1)
