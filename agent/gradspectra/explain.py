"""What a watch does not measure, and why, in words for its user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradspectra.clipping import missing
from gradspectra.inventory import Inventory
from gradspectra.second_measuring import SecondMeasuring
from gradspectra.spectra import Spectra
from gradspectra.updates import unknown_update


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
    reasons = [reason for optimizer in optimizers if (reason := unknown_update(optimizer))]
    if not optimizers:
        reasons.append("updates and moments are not measured: no optimizer was given")
    if (lacking := missing()) is not None:
        reasons.append(lacking)
    if left_out:
        reasons.append(f"{left_out} trainable tensors are in no watched optimizer")
    if inventory.sharded:
        reasons.append(f"{inventory.sharded} tensors are sharded, which is not supported")
    if second is not None:
        reasons += [second.activations.off] if second.activations.off is not None else []
        for name, seconds in sorted(second.tier.too_large.items()):
            reasons.append(f"no second tier of {name}: it would take {seconds * 1e3:.2g} ms, over 5% of a step")
    for name, seconds in sorted(spectra.too_large.items()):
        reasons.append(f"no spectrum of {name}: it would take {seconds * 1e3:.2g} ms, over 5% of a step")
    return reasons + [f"no spectrum of {name}: it is not one matrix" for name in spectra.without]
