"""Ways to train that a watch would measure wrongly; it refuses them when it is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

INSTEAD = "record loss and norms with gradspectra.Recorder, or pass enabled=False"


def refuse_unsupported(models: Mapping[str, nn.Module], optimizers: Sequence[Any]) -> None:
    """Raise ValueError for a model or optimizer whose gradients this process does not have as a whole."""
    for what in (*models.values(), *optimizers):
        if type(what).__module__.partition(".")[0] == "deepspeed":
            raise ValueError(f"{type(what).__name__} of DeepSpeed is not supported: {INSTEAD}")
    for model in models.values():
        if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
            raise ValueError(f"FullyShardedDataParallel (FSDP1) is not supported: {INSTEAD}")
    named = [named for model in models.values() for named in model.named_parameters()]
    groups = [group for optimizer in optimizers for group in getattr(optimizer, "param_groups", ())]
    named += [("a parameter of the optimizer", parameter) for group in groups for parameter in group["params"]]
    own = {id(parameter) for model in models.values() for parameter in model.parameters()}
    for name, parameter in named:
        if hasattr(parameter, "placements") and id(parameter) not in own:
            raise ValueError(f"{name} is a DTensor that is in no model: it is not supported: {INSTEAD}")
        if type(parameter).__name__ == "FlatParameter":
            raise ValueError(f"{name} is a FlatParameter: FullyShardedDataParallel (FSDP1) is not supported: {INSTEAD}")
