"""What a watch does not measure, and why, in words for its user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import SGD, AdamW

from gradspectra.clipping import missing
from gradspectra.inventory import Inventory
from gradspectra.second_measuring import SecondMeasuring
from gradspectra.spectra import Spectra
from gradspectra.updates import decay_of, unknown_update


def not_measured(
    optimizers: Sequence[Any],
    inventory: Inventory,
    left_out: int,
    spectra: Spectra,
    second: SecondMeasuring | None,
) -> list[str]:
    """One sentence for each thing that is missing from the records of this job.

    left_out: trainable tensors that no optimizer updates.
    """
    reasons = [reason for optimizer in optimizers if (reason := unknown_update(optimizer) or _decayed_away(optimizer))]
    if second is None:
        reasons = ['update_sq and the second tier are not measured: second_tier is "off"'] if inventory.tensors else []
    elif not optimizers:
        reasons.append("updates and moments are not measured: no optimizer was given")
    if (lacking := missing()) is not None:
        reasons.append(lacking)
    if left_out:
        reasons.append(f"{left_out} trainable tensors are in no watched optimizer")
    if inventory.trainable and not inventory.tensors:
        reasons.append(f"no layer is measured: none of the {len(inventory.trainable)} trainable tensors was chosen")
    reasons += inventory.left_out
    if inventory.sharded:
        reasons.append(f"{inventory.sharded} tensors are sharded, which is not supported")
    if second is not None:
        reasons += [second.activations.off] if second.activations.off is not None else []
        for name, seconds in sorted(second.tier.too_large.items()):
            reasons.append(f"no second tier of {name}: it would take {seconds * 1e3:.2g} ms, over 5% of a step")
    for name, seconds in sorted(spectra.too_large.items()):
        reasons.append(f"no spectrum of {name}: it would take {seconds * 1e3:.2g} ms, over 5% of a step")
    return reasons + [f"no spectrum of {name}: it is not one matrix" for name in spectra.without]


def _decayed_away(optimizer: Any) -> str | None:
    """Say of an optimizer of a known type why updates are left out with its present rates; None where they are not."""
    for group in optimizer.param_groups:
        if group.get("momentum") and not group["nesterov"]:
            continue  # the buffer is the update
        try:
            decay_of(group, type(optimizer) in (SGD, AdamW))
        except ZeroDivisionError as error:
            return f"some updates of {type(optimizer).__name__} are not measured: {error}"
    return None
