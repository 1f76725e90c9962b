"""Layer identity: which tensor (or named block of one) a row of numbers belongs to."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from gradspectra_core.roles import ROLES, depth_of, depths_of, role_of

__all__ = ["ROLES", "Layer", "LayerTable", "depth_of", "depths_of", "role_of"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One parameter tensor by its full name, or a named block of one (`…qkv.weight[q]`).

    role: what the tensor does (`q`, `k`, `v`, `o`, `up`, `gate`, `down`, `embedding`, `head`, `conv`, `linear`,
    `norm`, `bias`, `other`). depth: index of the repeated block the tensor lies in, counting from 0; -1 outside
    of any. shape: of the tensor or block, as trained (never reshaped).
    """

    name: str
    role: str
    depth: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LayerTable:
    """The ordered layers that a block of layer statistics speaks of; a model that changes gets a new table."""

    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, layers: Iterable[Layer]) -> LayerTable:
        """Build a table; raises ValueError for a name that occurs twice."""
        table = cls(tuple(layers))
        names = table.names
        if len(set(names)) != len(names):
            twice, _ = Counter(names).most_common(1)[0]
            raise ValueError(f"layer names must be unique, {twice!r} occurs twice")
        return table

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Layer names in order."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def digest(self) -> str:
        """Version of the table: 16 hexadecimal digits that depend on its whole content."""
        return hashlib.sha256(json.dumps(self.to_json(), separators=(",", ":")).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.layers)

    def to_json(self) -> list[dict[str, object]]:
        """Return the layers as plain JSON objects."""
        return [
            {"name": layer.name, "role": layer.role, "depth": layer.depth, "shape": list(layer.shape)}
            for layer in self.layers
        ]
