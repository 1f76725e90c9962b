"""How many examples, and how many predicted tokens, a batch of any common form holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

IGNORED = -100
"""Label of a token that is not predicted, by the convention of torch's cross_entropy."""


def examples_of(batch: Any) -> int | None:
    """Length of the first tensor in a batch (a tensor, or tensors in mappings and sequences); None without one."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.dim() else None
    inner: Iterable[Any] = ()
    if isinstance(batch, Mapping):
        inner = batch.values()
    elif isinstance(batch, (tuple, list)):
        inner = batch
    return next((found for entry in inner if (found := examples_of(entry)) is not None), None)


def tokens_of(batch: Any) -> Tensor | None:
    """Number of predicted tokens, on their device, of a batch with labels per token; None for any other."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, Tensor) or labels.dim() != 2 or labels.is_floating_point():
        return None
    return (labels != IGNORED).sum()
