"""What a watch finds when it is made: its rank, the steps already taken, software and devices."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from gradspectra.updates import betas


def rank() -> int:
    """Rank of this process among those that train together; 0 alone."""
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def ranks_averaged(models: Mapping[str, nn.Module]) -> int:
    """Over how many ranks DistributedDataParallel averages the gradients; 1 alone, 0 where several run without it."""
    wrappers = (m for model in models.values() for m in model.modules() if isinstance(m, DistributedDataParallel))
    wrapper = next(wrappers, None)
    distributed = torch.distributed
    if wrapper is not None:
        return distributed.get_world_size(wrapper.process_group)
    alone = not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1
    return 1 if alone else 0


def steps_taken(optimizers: Sequence[Any]) -> int:
    """The largest step in the optimizers' state: of a run that goes on from a checkpoint."""
    states = [state.get("step") for o in optimizers for state in o.state.values() if isinstance(state, Mapping)]
    return max((int(step) for step in states if step is not None), default=0)


def environment(models: Mapping[str, nn.Module], optimizers: Sequence[Any]) -> dict[str, Any]:
    """Plain facts about software, devices and size that are kept with the run."""
    parameters = {id(p): p for model in models.values() for p in model.parameters()}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "devices": sorted({str(p.device) for p in parameters.values()}),
        "parameters": sum(p.numel() for p in parameters.values() if not is_lazy(p)),
        "optimizer": [type(optimizer).__name__ for optimizer in optimizers],
        "betas": betas(optimizers),
    }
