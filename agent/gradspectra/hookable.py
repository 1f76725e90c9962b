"""Which optimizers call torch's hooks in their step, and which of those that wrap another do no more than step it."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

WRAPPED = ("optimizer", "original_optimizer", "opt")
"""Attributes under which wrappers keep what they wrap: most, Opacus, fastai."""
DELEGATING = frozenset(("accelerate", "lightning", "lightning_fabric", "pytorch_lightning", "opacus"))
"""Packages whose wrappers are optimizers by class, and leave the weights to the step of the one that they wrap."""


def hookable(optimizer: Any) -> bool:
    """Whether its step calls the hooks that it takes; that of a wrapper which was never set up as torch does, does not.

    torch's base class puts the calls around the step of each class that it sets up.
    """
    takes = hasattr(optimizer, "register_step_post_hook") and hasattr(optimizer, "_optimizer_step_post_hooks")
    return takes and bool(getattr(type(optimizer).step, "hooked", False))


def unwrapped(optimizer: Any) -> Any:
    """The optimizer itself, or what it wraps where it leaves the weights to that.

    One that is an optimizer by class may change them after the step of what it wraps (lookahead, averages): it stays.
    """
    if isinstance(optimizer, Optimizer) and type(optimizer).__module__.partition(".")[0] not in DELEGATING:
        return optimizer
    for name in WRAPPED:
        inner = getattr(optimizer, name, None)
        if inner is not optimizer and hasattr(inner, "param_groups"):
            return unwrapped(inner)
    return optimizer
