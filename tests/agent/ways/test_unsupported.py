"""What a watch would measure wrongly is refused when it is made, with the reason and the way out."""

from __future__ import annotations

import pytest
import torch
from agent.watched_training import attention, watched
from torch import nn


def named(name, module):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = attention()

    Wrapper.__name__, Wrapper.__module__ = name, module
    return Wrapper()


@pytest.mark.parametrize(
    ("name", "module", "said"),
    [
        ("FullyShardedDataParallel", "torch.distributed.fsdp", r"FullyShardedDataParallel \(FSDP1\) is not supported"),
        ("DeepSpeedEngine", "deepspeed.runtime.engine", "DeepSpeedEngine of DeepSpeed is not supported"),
    ],
)
@pytest.mark.usefixtures("kept")
def test_a_wrapper_that_hides_gradients_is_refused(name, module, said):
    model = named(name, module)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=rf"{said}: .*enabled=False"):
        watched(model, optimizer)
    assert watched(model, optimizer, enabled=False).status()["enabled"] is False


@pytest.mark.usefixtures("kept")
def test_the_parts_of_a_wrapper_are_refused_as_the_wrapper_is():
    class FlatParameter(nn.Parameter):
        pass

    optimizer = torch.optim.SGD([FlatParameter(torch.ones(3))], lr=0.1)
    with pytest.raises(ValueError, match=r"a parameter of the optimizer is a FlatParameter: .* is not supported"):
        watched(attention(), optimizer)


@pytest.mark.usefixtures("kept")
def test_sharding_that_cannot_be_measured_is_refused_and_named(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    def sgd(*models):
        return torch.optim.SGD([p for model in models for p in model.parameters()], lr=0.1)

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        columns, mixed, whole = attention(), attention(), attention()
        for model in (columns, mixed):
            model.head.weight = nn.Parameter(distribute_tensor(model.head.weight.detach(), mesh, [Shard(1)]))
        with pytest.raises(ValueError, match=r"embed\.weight is not sharded by rows over all ranks"):
            watched(mixed, sgd(mixed))
        with pytest.raises(ValueError, match=r"weight is not sharded by rows over all ranks"):
            watched(columns.head.requires_grad_(True), sgd(columns.head))
        fully_shard(whole, mesh=mesh)
        with pytest.raises(ValueError, match="need exactly one optimizer"):
            watched(whole, [sgd(whole), sgd(attention())])
        with pytest.raises(ValueError, match="a parameter of the optimizer is a DTensor that is in no model"):
            watched(attention(), sgd(whole))
    finally:
        torch.distributed.destroy_process_group()
