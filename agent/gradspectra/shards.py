"""Sharded parameters (FSDP2): each rank measures its shard, and one all-reduce at a recorded step puts them together.

The vector has a fixed length and carries each rank's failure and the cadence that its budget asks for, so that all
ranks follow the same plan. A rank whose measuring failed takes part with zeros.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from gradspectra_core.records import Float64
from torch import Tensor, distributed, nn

from gradspectra.guard import Guard

log = logging.getLogger("gradspectra")

SUMMED, SHARES = 5, 6
"""Rows of a share that are added up, and all of them: the last one is the largest entry, kept rank by rank."""
WAIT_FOR_RANKS = timedelta(seconds=60)


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor; one that is not sharded as it is."""
    shard: Tensor = getattr(tensor, "_local_tensor", tensor)
    return shard


def rows_here(parameter: Tensor) -> tuple[int, int]:
    """The rows [first, last) of a tensor that this rank has."""
    if not hasattr(parameter, "placements"):
        return 0, parameter.shape[0]
    mesh: Any = parameter.device_mesh  # type: ignore[attr-defined]
    size = -(-parameter.shape[0] // mesh.size())
    first = min(mesh.get_local_rank() * size, parameter.shape[0])
    return first, first + local(parameter).shape[0]


def sharding(models: Mapping[str, nn.Module], optimizers: Sequence[Any]) -> Any:
    """The process group that all trainable parameters are sharded over by rows; None where none is sharded.

    Raises ValueError, with the reason, for sharding that cannot be measured.
    """
    named: list[tuple[str, Any]] = [
        (name, p) for model in models.values() for name, p in model.named_parameters() if p.requires_grad
    ]
    sharded = [(name, p) for name, p in named if hasattr(p, "placements")]
    if not sharded:
        return None
    mesh = sharded[0][1].device_mesh
    for name, parameter in named:
        placements: Sequence[Any] = getattr(parameter, "placements", ())
        by_rows = [type(p).__name__ for p in placements] == ["Shard"] and placements[0].is_shard(0)
        if not by_rows or parameter.device_mesh != mesh or mesh.size() != distributed.get_world_size():
            raise ValueError(f"{name} is not sharded by rows over all ranks, as fully_shard does on one mesh")
        if local(parameter).device.type != mesh.device_type:
            raise ValueError(f"{name} lies on the {local(parameter).device.type}, its ranks exchange by another device")
    if len(optimizers) != 1 or not hasattr(optimizers[0], "register_step_post_hook"):
        raise ValueError("sharded parameters need exactly one optimizer, one that takes torch's hooks")
    return mesh.get_group()


class Exchange:
    """The all-reduce at every `cadence`-th optimizer step, counted on its own: no failure elsewhere can put it off."""

    def __init__(self, group: Any, layers: int, every: int, device: torch.device, guard: Guard) -> None:
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self.cadence = every
        self.failed: set[int] = set()
        self.broken = False
        self._group = group
        self._layers = layers
        self._device = device
        self._guard = guard
        self._count = 0

    @property
    def due(self) -> bool:
        """Whether the next optimizer step is a recorded one."""
        return not self.broken and (self._count + 1) % self.cadence == 0

    def step(self, share: Callable[[], Tensor], adopt: Callable[[Float64], None], proposal: int) -> None:
        """An optimizer step was taken. share: this rank's (6, L); adopt: takes the whole (6, L), unless a rank failed.

        proposal: the cadence that this rank's budget asks for; the coarsest is taken by all.
        """
        due = self.due
        self._count += 1
        if not due:
            return
        vector = torch.zeros(2 * self.size + (SUMMED + self.size) * self._layers, dtype=torch.float64)
        if self._guard.run("layers", self._fill, vector, share) is None:
            vector.zero_()
            vector[self.rank] = 1.0
        vector[self.size + self.rank] = proposal
        try:
            together = vector.to(self._device)
            distributed.all_reduce(together, group=self._group)
            found = together.cpu().numpy()
        except Exception as error:
            self.broken = True
            log.warning("gradspectra: the ranks cannot exchange (%r); layers are left out", error, exc_info=error)
            return
        self.cadence = max(1, int(found[self.size : 2 * self.size].max()))
        failed = set(np.flatnonzero(found[: self.size]).tolist())
        self.failed |= failed
        if not failed:
            rest = found[2 * self.size :].reshape(SUMMED + self.size, self._layers)
            self._guard.run("ranks", adopt, np.concatenate([rest[:SUMMED], rest[SUMMED:].max(0, keepdims=True)]))

    def _fill(self, vector: Tensor, share: Callable[[], Tensor]) -> bool:
        own = share().to(vector)
        rest = vector[2 * self.size :].view(SUMMED + self.size, self._layers)
        rest[:SUMMED] = own[:SUMMED]
        rest[SUMMED + self.rank] = own[SUMMED]
        return True

    def not_measured(self) -> list[str]:
        """What sharding leaves out, and which ranks failed, in words."""
        reasons = ["spectra, parts, noise and drift are not measured: the parameters are sharded"]
        if self.failed:
            names = ", ".join(map(str, sorted(self.failed)))
            reasons.append(f"layers were left out at some steps: measuring failed on the ranks {names}")
        return reasons + (["layers: the ranks cannot exchange any more"] if self.broken else [])


def wait_for_all(group: Any, store: Any, layers: int, every: int) -> None:
    """Raise ValueError unless every rank makes its watch within a minute, and alike: else all-reduces would wait."""
    keys = [f"here/{rank}" for rank in range(distributed.get_world_size(group))]
    store.set(keys[distributed.get_rank(group)], f"{layers} layers, every={every}")
    try:
        store.wait(keys, WAIT_FOR_RANKS)
    except Exception as error:
        raise ValueError("with sharded parameters every rank must make its watch; not all have done so") from error
    said = [store.get(key).decode() for key in keys]
    if len(set(said)) > 1:
        raise ValueError(f"with sharded parameters all ranks must watch alike, got {'; '.join(said)}")
