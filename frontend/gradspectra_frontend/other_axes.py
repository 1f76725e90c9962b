"""A figure over steps moved to another axis: tokens, seconds of training, or the fraction of the run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gradspectra_core.records import Int64

from gradspectra_frontend.marks import Array
from gradspectra_frontend.theme import Figure

LOOKS = {
    "tokens": ("tokens", "~s", ",.0f"),
    "time": ("seconds of training", ",~r", ",.1f"),
    "fraction": ("fraction of the run", "~r", ".4f"),
}
"""Axis → its title, and the formats of its ticks and of what is pointed at."""

_OF_STEPS = "step %{x:,d}"


def on_axis(figure: Figure, axis: str, place: Callable[[Int64], Array]) -> None:
    """Draw a figure over steps along another axis, one of LOOKS.

    place: gives for steps, (N,) int64 increasing, where they lie on that axis, (N,) never decreasing.
    """
    title, ticks, hover = LOOKS[axis]
    layout = figure["layout"]
    shapes = layout["shapes"]
    rows = [trace["x"] for trace in figure["data"]] + [[shape["x0"], shape["x1"]] for shape in shapes]
    known = [np.asarray([one for one in row if one is not None], np.int64) for row in rows]
    steps = np.unique(np.concatenate([np.empty(0, np.int64), *known]))
    placed = dict(zip(steps.tolist(), place(steps).tolist(), strict=True)) if len(steps) else {}
    moved = [[None if one is None else placed[int(one)] for one in row] for row in rows]
    for trace, row in zip(figure["data"], moved, strict=False):
        trace["x"] = row
    for shape, (first, last) in zip(shapes, moved[len(figure["data"]) :], strict=True):
        shape |= {"x0": first, "x1": last}
    for trace in figure["data"]:
        if _OF_STEPS in trace.get("hovertemplate", ""):
            trace["hovertemplate"] = trace["hovertemplate"].replace(_OF_STEPS, f"{title} %{{x:{hover}}}")
    named = layout["xaxis"]["title"] | {"text": title}
    layout["xaxis"] |= {"title": named, "tickformat": ticks, "hoverformat": hover}
    for of_steps in ("tickmode", "tickvals", "autorangeoptions"):
        layout["xaxis"].pop(of_steps, None)
    layout["meta"]["axis"] = axis
    layout["uirevision"] = f"{layout['uirevision']} {axis}"
