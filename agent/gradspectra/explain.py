"""What a watch does not measure, and why, in words for its user."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gradspectra.clipping import missing
from gradspectra.hookable import hookable
from gradspectra.inventory import Inventory
from gradspectra.options import NEVER, Options
from gradspectra.reasons import LikelyMistake
from gradspectra.second_measuring import SecondMeasuring
from gradspectra.spectra import Spectra
from gradspectra.staging import decayed_away
from gradspectra.updates import unknown_update

FEW = 3
_NUMBERED = re.compile(r"\[\d+\]$")


def not_measured(
    options: Options,
    optimizers: Sequence[Any],
    inventory: Inventory,
    left_out: str | None,
    spectra: Spectra,
    second: SecondMeasuring | None,
) -> list[str]:
    """One sentence for each thing that is missing from the records of this job, a LikelyMistake where it is one.

    left_out: says which trainable tensors no optimizer updates, None where all are.
    """
    if options.every == NEVER:
        return ["nothing is measured on this rank: it follows the steps, to act at alerts when rank 0 does"]
    reasons = [reason for optimizer in optimizers if (reason := _untold(optimizer, second))]
    if second is None:
        reasons = ['update_sq and the second tier are not measured: second_tier is "off"'] if inventory.tensors else []
    elif not optimizers:
        reasons.append("updates and moments are not measured: no optimizer was given")
    if (lacking := missing()) is not None:
        reasons.append(lacking)
    reasons += [left_out] if left_out is not None else []
    if not inventory.tensors:
        reasons += _nothing(inventory)
    reasons += map(LikelyMistake, inventory.left_out)
    if inventory.sharded:
        reasons.append(f"{inventory.sharded} tensors are sharded, which is not supported")
    if second is not None:
        reasons += [second.activations.off] if second.activations.off is not None else []
        for name, seconds in sorted(second.tier.too_large.items()):
            reasons.append(f"no second tier of {name}: it would take {seconds * 1e3:.2g} ms, over 5% of a step")
    reasons += too_large_in_words(spectra.too_large)
    return reasons + not_one_matrix(spectra.without)


def _nothing(inventory: Inventory) -> list[str]:
    """Say why no layer is measured, unless all are still to be made by lazy modules, or sharded."""
    if inventory.trainable:
        chosen_of = f"none of the {len(inventory.trainable)} trainable tensors was chosen"
        return [LikelyMistake(f"no layer is measured: {chosen_of}")]
    to_be_made = any(0 in marks for marks in inventory.signature)
    return [] if to_be_made or inventory.sharded else [LikelyMistake("no layer is measured: no parameter is trainable")]


def not_one_matrix(names: Sequence[str]) -> list[str]:
    """Say which layers have no spectrum since they are no matrices, of more than FEW in one sentence."""
    if len(names) > FEW:
        return [f"no spectrum of {names[0]} and {len(names) - 1} more: they are not one matrix each"]
    return [f"no spectrum of {name}: it is not one matrix" for name in names]


def too_large_in_words(spectra: Mapping[str, float]) -> list[str]:
    """Say whose spectra take too much of a step, of experts in one tensor together. spectra: seconds, by layer."""
    alike: dict[str, list[str]] = {}
    for name in sorted(spectra):
        alike.setdefault(_NUMBERED.sub("", name), []).append(name)
    reasons = []
    for tensor, names in alike.items():
        what = names[0] if len(names) == 1 else f"{len(names)} blocks of {tensor}"
        most = max(spectra[name] for name in names)
        each = "it would take" if len(names) == 1 else "each would take up to"
        reasons.append(f"no spectrum of {what}: {each} {most * 1e3:.2g} ms, over 5% of a step")
    return reasons


def _untold(optimizer: Any, second: SecondMeasuring | None) -> str | None:
    """Say why an optimizer's state does not tell all of its updates, and what then is missing; None where it does."""
    copied = second is not None and second.copies and hookable(optimizer)
    if (reason := unknown_update(optimizer, copied)) is not None:
        return reason
    lost = [why for group in optimizer.param_groups if (why := decayed_away(optimizer, group)) is not None]
    how = "measured of a few layers at a time, by copies of their weights" if copied else "not measured"
    return f"some updates of {type(optimizer).__name__} are {how}: {lost[0]}" if lost else None
