"""Low-rank adapters (LoRA): the two factors of what is added to a weight, which is their product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradspectra.inventory import WatchedTensor

_LEFT, _RIGHT = "lora_B", "lora_A"


def right_factors(tensors: Sequence[WatchedTensor]) -> dict[str, WatchedTensor]:
    """The factor A (r, n) of each pair, `lora_A` and `lora_B` in names else alike, by the name of its B (m, r)."""
    named = {tensor.name: tensor for tensor in tensors}
    pairs = {name: named.get(name.replace(_LEFT, _RIGHT)) for name in named if _LEFT in name}
    return {name: right for name, right in pairs.items() if right is not None and _fit(named[name], right)}


def _fit(left: WatchedTensor, right: WatchedTensor) -> bool:
    m, n = left.parameter, right.parameter
    alike = m.device == n.device and m.dtype == n.dtype and len(left.pieces) == len(right.pieces) == 1
    return alike and m.dim() == n.dim() == 2 and m.shape[1] == n.shape[0]


def core_of_product(left: Tensor, right: Tensor) -> Tensor:
    """A small matrix, float64, that has the singular values of left @ right but for zeros: R_B R_Aᵀ of two QRs.

    left: (m, r), right: (r, n), of any floating dtype. Returns (min(m, r), min(n, r)).
    """
    first, second = (torch.linalg.qr(factor.detach().double(), mode="r").R for factor in (left, right.t()))
    core: Tensor = first @ second.t()
    return core
