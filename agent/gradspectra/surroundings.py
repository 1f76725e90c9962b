"""What a watch finds when it is made: its rank, the steps already taken, software and devices."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn


def rank() -> int:
    """Rank of this process among those that train together; 0 alone."""
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


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
        "parameters": sum(p.numel() for p in parameters.values()),
        "optimizer": [type(optimizer).__name__ for optimizer in optimizers],
    }
