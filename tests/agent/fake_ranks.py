"""Ranks with sharded models, each made in turn in one process without the others."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from agent.ways.ranks import Conv1D, Mixed
from gradspectra.budget import Budget
from gradspectra.inventory import Inventory, take_inventory
from gradspectra.layer_choice import choice_of
from gradspectra.shard_tier import ShardTier
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore


@contextmanager
def as_rank(rank: int, ranks: int) -> Iterator[DeviceMesh]:
    """This process as one of several ranks whose exchanges do nothing."""
    distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield init_device_mesh("cpu", (ranks,))
    finally:
        distributed.destroy_process_group()


class Wide(Mixed):
    """Also a fused matrix whose blocks have fewer rows than columns."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.ModuleDict({"qkv": nn.Linear(30, 12, bias=False)})


class Large(Wide):
    """Also layers whose medians are of a sample: 6,300 entries, as they lie, fused by columns, and of three experts."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.ModuleDict({"c_attn": Conv1D(70, 270), "up": nn.Linear(90, 70)})
        self.experts = nn.ParameterDict({"up": nn.Parameter(torch.randn(3, 90, 70) / 90**0.5)})


def sharded(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """A copy of a model as this rank has it."""
    copied = copy.deepcopy(model)
    fully_shard(copied.get_submodule("c_attn"), mesh=mesh)
    return fully_shard(copied, mesh=mesh)


def give_gradients(model: nn.Module, whole: dict[str, Tensor | None], rank: int, mesh: DeviceMesh) -> None:
    """Let a sharded model have this rank's rows of these gradients."""
    for name, parameter in model.named_parameters():
        gradient = whole[name]
        if gradient is not None:
            rows = [*gradient.split(-(-len(gradient) // mesh.size())), *[gradient[:0]] * mesh.size()]
            parameter.grad = DTensor.from_local(
                rows[rank], mesh, [Shard(0)], run_check=False, shape=gradient.shape, stride=gradient.stride()
            )


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.03, weight_decay=0.2, betas=(0.8, 0.95)),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=0.1),
}


def made(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A model with the same weights each time."""
    torch.manual_seed(0)
    return Large().to(dtype)


def tier_of(
    model: nn.Module, mesh: DeviceMesh, rank: int, kind: str = "adamw", budget: Budget | None = None
) -> tuple[ShardTier, torch.optim.Optimizer, Inventory]:
    """The second tier of a sharded model, without a budget if none is given, its optimizer and its inventory."""
    optimizer = OPTIMIZERS[kind](model.parameters())
    inventory = take_inventory({"": model}, [optimizer], choice_of(None), True)
    tier = ShardTier(inventory, budget or Budget(None, 1, True), optimizer, rank, mesh.size())
    return tier, optimizer, inventory
