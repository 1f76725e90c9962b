"""A profile: one statistic over the depth of the network at one step, a line for each kind of layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gradspectra_core.views import LayerSeries

from gradspectra_frontend.heatmap import gridded
from gradspectra_frontend.layer_figures import SIGNED, TITLES
from gradspectra_frontend.marks import MARK_AXIS, Array, Curve, curve_traces, plain
from gradspectra_frontend.theme import Figure, Theme, axis, base_layout, value_ticks

DASHES = ("solid", "dash", "dot")
DEPTH_TICKS = 10
MOST_STEPS = 1000
_EXPERT = re.compile(r"(?<=\[)\d+(?=\]$)|(?<=experts\.)\d+(?=\.)")


def profile(
    data: LayerSeries, _alerts: Sequence[Mapping[str, Any]], theme: Theme, *, step: int | None = None
) -> Figure:
    """Value over depth at a step, one line for each kind of layer. Reads one layer statistic.

    step: the last measured where None. Layers are of one kind whose names differ by their depth alone, or by the
    number of an expert: of several at one depth the line has the median. A measurement holds until the next of its
    layer; of a bucket of several steps it is the mean. Layers outside of the blocks stand before them if they are
    embeddings, after them otherwise. A line's name has its MAD, the mean absolute difference between neighbouring
    depths. `layout.meta` has the `steps` to choose from and the `step` shown.
    Source of the MAD: Li et al. 2024, what happened in LLM layers when trained for fast vs. slow thinking.
    """
    title = TITLES.get(data.statistic, plain(data.statistic.replace("_", " ")))
    grid = gridded(np.asarray(data.x), data.mean, data.nonfinite, np.asarray(data.present, bool))
    steps = grid.x[grid.present.any(0)].astype(np.int64) if len(grid.x) else np.empty(0, np.int64)
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST_STEPS)).astype(int))]
    layout = base_layout(theme, f"{title} over depth", f"profile {data.statistic}")
    layout["meta"] = {
        "figure": "profile",
        "title": f"{title} over depth",
        "last_step": int(data.x[-1]) if len(data.x) else 0,
    }
    layout["meta"] |= {"steps": steps, "step": None, "mad": {}, "note": ""}
    figure: Figure = {"data": [], "layout": layout}
    layout["xaxis"] = axis(theme, "depth", showgrid=False, zeroline=False)
    layout["yaxis"] = axis(theme, title.lower(), nticks=6)
    if not len(steps):
        return figure
    shown = int(steps[-1 if step is None else max(np.searchsorted(steps, step, side="right") - 1, 0)])
    column = int(np.flatnonzero(grid.x == shown)[0])
    value = np.where(grid.present[:, column], grid.value[:, column], np.nan)
    layout["meta"] |= {"step": shown, "note": f"step {shown:,}"}
    _draw(figure, data, value, grid.present[:, column], grid.nonfinite[:, column], theme)
    return figure


def kinds(data: LayerSeries) -> list[str]:
    """Name of each layer with * for its depth and an expert's number: the layers of one kind have it in common."""
    return [
        _EXPERT.sub("*", re.sub(rf"(?<![^.]){depth}(?![^.])", "*", name, count=1)) if depth >= 0 else name
        for name, depth in zip(data.layers, data.depths, strict=True)
    ]


def mean_absolute_difference(depths: Array, values: Array) -> float:
    """Mean of |v(next) − v| over neighbours in order of depth, (n,) each, finite ones alone; NaN for less than two."""
    order = np.argsort(depths, kind="stable")
    finite = values[order][np.isfinite(values[order])]
    return float(np.abs(np.diff(finite)).mean()) if len(finite) > 1 else float("nan")


def _median(values: Array) -> float:
    """Median of the finite ones of (n,), NaN where there are none."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else float("nan")


def _draw(figure: Figure, data: LayerSeries, value: Array, present: Array, nonfinite: Array, theme: Theme) -> None:
    layout = figure["layout"]
    finite = value[np.isfinite(value)]
    log = bool(finite.size) and data.statistic not in SIGNED and bool((finite > 0).mean() > 0.5)
    layout["yaxis"] |= {"type": "log" if log else "linear"} | value_ticks(log, finite)
    layout["yaxis2"] = dict(MARK_AXIS)
    last = max(data.depths, default=-1)
    place = np.array(
        [
            depth if depth >= 0 else (-1 if role == "embedding" else last + 1)
            for depth, role in zip(data.depths, data.roles, strict=True)
        ]
    )
    kind = np.array(kinds(data), object)
    for number, (name, label) in enumerate(_labels(kind[present], np.array(data.roles, object)[present]).items()):
        rows = np.flatnonzero((kind == name) & present)
        at, own = np.unique(place[rows], return_inverse=True)
        middle = np.array([_median(value[rows[own == depth]]) for depth in range(len(at))])
        lost = np.bincount(own, nonfinite[rows], len(at)).astype(np.int64)
        mad = mean_absolute_difference(at, middle)
        layout["meta"]["mad"][name] = None if np.isnan(mad) else mad
        several = f", median of {np.bincount(own).max()}" if len(rows) > len(at) else ""
        text = plain(label) + several + ("" if np.isnan(mad) else f", MAD {mad:.3g}")
        curve = Curve(text, at, middle, middle, middle, lost)
        colour, dash = theme.lines[number % len(theme.lines)], DASHES[number // len(theme.lines) % len(DASHES)]
        figure["data"] += curve_traces(curve, colour, theme, log=log, dash=dash, hover=".4~g")
    layout["xaxis"] |= _depth_ticks(place, last)
    layout["showlegend"] = True


def _labels(kind: Array, roles: Array) -> dict[str, str]:
    """Kinds in their order, each with its role where no other kind has it, else with the end of its name."""
    role_of = dict(zip(kind.tolist(), roles.tolist(), strict=True))
    count = Counter(role_of.values())
    return {
        name: role if count[role] == 1 and role != "other" else name.removesuffix(".weight").split("*.", 1)[-1]
        for name, role in role_of.items()
    }


def _depth_ticks(place: Array, last: int) -> dict[str, Any]:
    each = max(1, int(np.ceil((last + 1) / DEPTH_TICKS)))
    ticks = [(depth, str(depth)) for depth in range(0, last + 1, each)]
    ticks = ([(-1, "embedding")] if (place == -1).any() else []) + ticks
    ticks += [(last + 1, "after")] if (place == last + 1).any() else []
    return {"tickvals": [at for at, _ in ticks], "ticktext": [text for _, text in ticks], "hoverformat": ",d"}
