"""What the run list shows of a run's numbers, kept up at each batch: loss (at most 60 points), rate, step time."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
from gradspectra_core.records import Bool, Columns, Float64, Int64

POINTS = 60
NEWEST = ("learning_rate", "step_seconds")
"""Kept beside the curve: the newest learning rate, and the median time of a step of the newest batch."""
SERIES = frozenset(("loss", *NEWEST))


def empty() -> dict[str, Any]:
    """Return the sparkline of a run without steps."""
    return {"width": 1, "steps": [], "losses": []}


def extended(line: dict[str, Any], steps: Int64, losses: Float64, present: Bool) -> dict[str, Any]:
    """Add losses to a sparkline: each bucket of `width` steps keeps its last loss, and the width doubles when full.

    steps: (S,) above those of the line; losses, present: (S,).
    """
    width = int(line["width"])
    steps, losses = steps[present], losses[present]
    if not len(steps):
        return line
    if len(steps) > 1:
        keep = _last_of_bucket(steps, width)
        steps, losses = steps[keep], losses[keep]
    new_steps, new_losses = steps.tolist(), losses.tolist()
    same = bool(line["steps"]) and line["steps"][-1] // width == new_steps[0] // width
    until = len(line["steps"]) - same
    all_steps, all_losses = line["steps"][:until] + new_steps, line["losses"][:until] + new_losses
    while len(all_steps) > POINTS:
        width *= 2
        keep = _last_of_bucket(np.asarray(all_steps, np.int64), width)
        all_steps, all_losses = [all_steps[at] for at in keep], [all_losses[at] for at in keep]
    return {**line, "width": width, "steps": all_steps, "losses": all_losses}


def with_batch(line: dict[str, Any], steps: Int64, scalars: Columns) -> dict[str, Any]:
    """Take in the scalars of a batch. steps: (S,) above those of the line."""
    found = dict(line)
    rates, seconds = _present(scalars, "learning_rate"), sorted(_present(scalars, "step_seconds"))
    if rates:
        found["learning_rate"] = rates[-1]
    if seconds:
        found["step_seconds"] = seconds[len(seconds) // 2]
    if "loss" not in scalars.names:
        return found
    at = scalars.names.index("loss")
    return extended(found, steps, scalars.values[at].astype(np.float64, copy=False), scalars.present[at])


def cut(line: dict[str, Any], first_step: int) -> dict[str, Any]:
    """Drop what a new attempt that begins at `first_step` hides."""
    kept = [pair for pair in zip(line["steps"], line["losses"], strict=True) if pair[0] < first_step]
    return {"width": line["width"], "steps": [step for step, _ in kept], "losses": [loss for _, loss in kept]}


def to_text(line: dict[str, Any]) -> str:
    """Write a sparkline as the database keeps it, the JSON of `JsonText`, in a twentieth of the time."""
    text = orjson.dumps(line).decode()
    return json.dumps(line, separators=(",", ":")) if "null" in text else text  # NaN and ±inf have names there


def from_text(text: str) -> dict[str, Any]:
    """Read what `to_text` or `JsonText` wrote."""
    try:
        line: dict[str, Any] = orjson.loads(text)
    except orjson.JSONDecodeError:  # NaN and ±inf
        line = json.loads(text)
    return line


def _present(scalars: Columns, name: str) -> list[float]:
    if name not in scalars.names:
        return []
    at = scalars.names.index(name)
    found: list[float] = scalars.values[at][scalars.present[at]].tolist()
    return found


def _last_of_bucket(steps: Int64, width: int) -> Int64:
    bucket = steps // width
    last = np.ones(len(bucket), np.bool_)
    last[:-1] = bucket[1:] != bucket[:-1]
    return np.flatnonzero(last)
