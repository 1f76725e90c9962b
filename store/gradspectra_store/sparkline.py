"""The small curve of a run's loss in the run list: at most 60 points over the whole run, kept up at each batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from gradspectra_core.records import Bool, Float64, Int64

POINTS = 60


def empty() -> dict[str, Any]:
    """Return the sparkline of a run without steps."""
    return {"width": 1, "steps": [], "losses": []}


def extended(line: dict[str, Any], steps: Int64, losses: Float64, present: Bool) -> dict[str, Any]:
    """Add losses to a sparkline: each bucket of `width` steps keeps its last loss, and the width doubles when full.

    steps: (S,) above those of the line; losses, present: (S,).
    """
    if not present.any():
        return line
    all_steps = np.concatenate([np.asarray(line["steps"], np.int64), steps[present]])
    all_losses = np.concatenate([np.asarray(line["losses"], np.float64), losses[present]])
    width = int(line["width"])
    keep = _last_of_bucket(all_steps, width)
    while len(keep) > POINTS:
        width *= 2
        keep = _last_of_bucket(all_steps, width)
    return {"width": width, "steps": all_steps[keep].tolist(), "losses": all_losses[keep].tolist()}


def cut(line: dict[str, Any], first_step: int) -> dict[str, Any]:
    """Drop what a new attempt that begins at `first_step` hides."""
    kept = [pair for pair in zip(line["steps"], line["losses"], strict=True) if pair[0] < first_step]
    return {"width": line["width"], "steps": [step for step, _ in kept], "losses": [loss for _, loss in kept]}


def _last_of_bucket(steps: Int64, width: int) -> Int64:
    bucket = steps // width
    return np.flatnonzero(np.append(bucket[1:] != bucket[:-1], True))
