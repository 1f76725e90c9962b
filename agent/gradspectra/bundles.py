"""Small tensors of one size, measured together: biases and norms are half of a model's tensors and none of its work."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradspectra.flat import CHUNK, joined
from gradspectra.inventory import WatchedTensor
from gradspectra.shards import local
from gradspectra.updates import Direction, intended_update

SMALL = 4096
"""Most elements of a tensor that is measured together with others."""
FEWEST = 3


def bundle(tensors: Iterable[WatchedTensor]) -> list[tuple[WatchedTensor, ...]]:
    """Sort tensors of one optimizer into bundles that `Bundle` can measure; the others come alone."""
    groups: dict[tuple[Any, ...], list[WatchedTensor]] = {}
    alone: list[tuple[WatchedTensor, ...]] = []
    for tensor in tensors:
        parameter = tensor.parameter
        if (
            local(parameter) is parameter
            and parameter.dtype is torch.float32
            and len(tensor.pieces) == 1
            and parameter.numel() <= SMALL
        ):
            key = parameter.numel(), parameter.device, id(tensor.group)
            groups.setdefault(key, []).append(tensor)
        else:
            alone.append((tensor,))
    bundles = []
    for same in groups.values():
        most = CHUNK // same[0].parameter.numel()
        for start in range(0, len(same), most):
            part = tuple(same[start : start + most])
            if len(part) >= FEWEST:
                bundles.append(part)
            else:
                alone += [(tensor,) for tensor in part]
    return bundles + alone


def squares(vectors: Sequence[Tensor]) -> Tensor:
    """Sums of squares of n vectors of one length: (n,)."""
    together = torch.stack([vector.reshape(-1) for vector in vectors])
    return together.mul_(together).sum(1)


def bundle_rows(tensors: Sequence[WatchedTensor], optimizer: Any) -> tuple[Tensor, float | None] | None:
    """Rows of the results of a bundle, (5, n) in the order of measure's, and the factor of its update's direction.

    The factor is None, and the row means nothing, where the optimizer's update is not known. Returns None where the
    tensors cannot be measured together: one lacks its gradient, or they have not taken the same steps.
    """
    gradients = [tensor.parameter.grad for tensor in tensors]
    if any(gradient is None or gradient.is_sparse or gradient.dtype is not torch.float32 for gradient in gradients):
        return None
    count = len(tensors)
    update = None
    if optimizer is not None:
        update = intended_update(optimizer, tensors)
        if update is None or isinstance(update[1], Tensor):
            return None
    gradient = joined([g for g in gradients if g is not None]).view(count, -1)
    weight = joined([tensor.parameter for tensor in tensors]).view(count, -1)
    low, high = torch.aminmax(gradient, dim=1)
    square, weight_sq = gradient.mul_(gradient).sum(1), weight.mul_(weight).sum(1)
    if update is None:
        return torch.stack([square, low, high, weight_sq, torch.zeros_like(square)]), None
    assert not isinstance(update[1], Tensor)
    return torch.stack([square, low, high, weight_sq, _direction_sq(tensors, update[0])]), update[1]


def bundle_update(tensors: Sequence[WatchedTensor], optimizer: Any) -> tuple[Tensor, float] | None:
    """‖d‖² of each tensor of a bundle that all have a gradient, (n,), and the factor; None where it is not known."""
    update = intended_update(optimizer, tensors)
    if update is None or isinstance(update[1], Tensor):
        return None
    return _direction_sq(tensors, update[0]), update[1]


def _direction_sq(tensors: Sequence[WatchedTensor], direction: Direction) -> Tensor:
    numbers = sum(tensor.parameter.numel() for tensor in tensors)
    scratch = torch.empty(numbers, dtype=torch.float32, device=tensors[0].parameter.device)
    moved = direction(0, numbers, scratch).view(len(tensors), -1)
    return moved.mul_(moved).sum(1)
