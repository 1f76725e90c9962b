"""Sharded parameters (FSDP2): what of them this rank has, and whether all ranks watch them alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from torch import Tensor, distributed, nn

from gradspectra.hookable import hookable

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
    if len(optimizers) != 1 or not hookable(optimizers[0]):
        raise ValueError("sharded parameters need exactly one optimizer, one that takes torch's hooks")
    return mesh.get_group()


def wait_for_all(group: Any, store: Any, plan: str) -> None:
    """Raise ValueError unless every rank makes its watch within a minute, and alike: else all-reduces would wait.

    plan: what must be the same on all ranks, in words.
    """
    keys = [f"here/{rank}" for rank in range(distributed.get_world_size(group))]
    store.set(keys[distributed.get_rank(group)], plan)
    try:
        store.wait(keys, WAIT_FOR_RANKS)
    except Exception as error:
        raise ValueError("with sharded parameters every rank must make its watch; not all have done so") from error
    said = [store.get(key).decode() for key in keys]
    if len(set(said)) > 1:
        raise ValueError(f"with sharded parameters all ranks must watch alike, got {'; '.join(said)}")
