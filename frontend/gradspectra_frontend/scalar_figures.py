"""Figures of one number per step: loss, gradient norm, learning rate, noise scale and step time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gradspectra_core.views import Series

from gradspectra_frontend.marks import (
    MARK_AXIS,
    Curve,
    band,
    curve_traces,
    plain,
    shade_alerts,
)
from gradspectra_frontend.theme import Figure, Theme, axis, base_layout, decades, step_axis, value_ticks

Alerts = Sequence[Mapping[str, Any]]

SMOOTH_SHARE = 0.01
"""Smoothing drawn over the loss unless asked otherwise: its time constant as a share of the entries drawn."""

LOG_RATIO = 30.0
"""A positive series that spans more than this ratio gets a log axis."""


def loss(data: Series, alerts: Alerts, theme: Theme, *, smooth: float | None = None, scale: str = "auto") -> Figure:
    """Loss and evaluation loss by step. Reads the series loss and eval_loss.

    smooth: time constant in entries of the line drawn over the raw one; None takes 1% of the entries, 0 none.
    scale: "log", "linear", or "auto" (log where the values span more than a factor of 30).
    """
    curves = _curves(data, ("loss", "eval_loss"))
    return _figure("loss", "Loss", "loss", curves, data, alerts, theme, smooth=smooth, scale=scale)


def grad_norm(data: Series, alerts: Alerts, theme: Theme, *, smooth: float | None = 0.0, scale: str = "auto") -> Figure:
    """Gradient norm before clipping with the clip threshold. Reads the series grad_norm and clip_threshold."""
    curves = _curves(data, ("grad_norm",), {"grad_norm": "gradient norm"})
    figure = _figure(
        "grad_norm", "Gradient norm before clipping", "norm", curves, data, alerts, theme, smooth=smooth, scale=scale
    )
    for threshold in _curves(data, ("clip_threshold",), {"clip_threshold": "clip threshold"}):
        log = figure["layout"]["yaxis"]["type"] == "log"
        figure["data"] += curve_traces(threshold, theme.muted, theme, log=log, dash="dash")
    return finished(figure)


def learning_rate(data: Series, alerts: Alerts, theme: Theme, *, scale: str = "auto") -> Figure:
    """Learning rate, one line per parameter group. Reads learning_rate and learning_rate/<group>."""
    groups = tuple(sorted(name for name in data.series if name.startswith("learning_rate/")))
    names = groups or ("learning_rate",)
    labels = {name: "group " + name.partition("/")[2] for name in groups} | {"learning_rate": "learning rate"}
    curves = _curves(data, names, labels)
    return _figure(
        "learning_rate", "Learning rate", "rate", curves, data, alerts, theme, smooth=0.0, scale=scale, hover=".4~g"
    )


def noise_scale(data: Series, alerts: Alerts, theme: Theme, *, scale: str = "log") -> Figure:
    """Gradient noise scale of the run with its interval, beside the batch size.

    Reads noise_scale, noise_scale_low, noise_scale_high and examples. Above the batch size, a larger batch still
    buys fewer steps; below it, the batch spends examples for little. Empty where there is no noise scale yet.
    """
    curves = _curves(data, ("noise_scale",), {"noise_scale": "noise scale"})
    unit = "examples" if "examples" in data.series else "multiples of the batch"
    figure = _figure(
        "noise_scale", "Gradient noise scale", unit, curves, data, alerts, theme, smooth=0.0, scale=scale, hover=".4~g"
    )
    if not any(len(curve.x) for curve in curves):
        figure["layout"]["shapes"] = []
        return figure | {"data": []}
    figure["data"] = [*_interval(data, theme), *figure["data"]]
    for batch in _curves(data, ("examples",), {"examples": "batch size"}):
        figure["data"] += curve_traces(batch, theme.muted, theme, log=scale != "linear", dash="dash", hover=",.0f")
    return finished(figure)


def step_time(data: Series, alerts: Alerts, theme: Theme, *, scale: str = "auto") -> Figure:
    """Seconds per step, waiting for data, and spent by the agent. Reads step_, data_ and agent_seconds."""
    labels = {"step_seconds": "whole step", "data_seconds": "waiting for data", "agent_seconds": "measuring"}
    curves = _curves(data, tuple(labels), labels)
    return _figure(
        "step_time", "Step time", "seconds", curves, data, alerts, theme, smooth=0.0, scale=scale, hover=".3~s"
    )


def _curves(data: Series, names: Sequence[str], labels: Mapping[str, str] | None = None) -> list[Curve]:
    labels = labels or {}
    return [
        Curve.of(plain(labels.get(name, name.replace("_", " "))), data.x, data.series[name])
        for name in names
        if name in data.series
    ]


def _figure(
    name: str,
    title: str,
    y_title: str,
    curves: list[Curve],
    data: Series,
    alerts: Alerts,
    theme: Theme,
    *,
    smooth: float | None,
    scale: str,
    hover: str = ".5~g",
) -> Figure:
    log = log_axis(curves, scale)
    layout = base_layout(theme, title, name)
    layout["xaxis"] = step_axis(theme, data.axis, data.x, hoverformat=",d")
    layout["yaxis"] = axis(theme, y_title, type="log" if log else "linear", nticks=6)
    layout["meta"] = {"figure": name, "title": title, "last_step": int(data.x[-1]) if len(data.x) else 0}
    figure: Figure = {"data": [], "layout": layout}
    for colour, curve in zip(theme.lines, curves, strict=False):
        window = SMOOTH_SHARE * len(curve.x) if smooth is None else smooth
        figure["data"] += curve_traces(
            curve, colour, theme, log=log, smooth=window if window >= 1 else 0.0, hover=hover
        )
    shade_alerts(figure, alerts, theme, data.x)
    return finished(figure)


def finished(figure: Figure) -> Figure:
    """Show the legend where there is more than one name to tell apart; give marks their axis; choose the ticks."""
    layout = figure["layout"]
    named = [trace for trace in figure["data"] if trace.get("showlegend", True)]
    layout["showlegend"] = len(named) > 1
    if any(trace.get("yaxis") == "y2" for trace in figure["data"]):
        layout["yaxis2"] = dict(MARK_AXIS)
    drawn = [np.asarray(trace["y"], float) for trace in figure["data"] if trace.get("yaxis") != "y2"]
    layout["yaxis"] |= value_ticks(layout["yaxis"]["type"] == "log", np.concatenate(drawn) if drawn else np.empty(0))
    return figure


def log_axis(curves: list[Curve], scale: str) -> bool:
    """Decide whether the y axis is logarithmic; raises ValueError for an unknown `scale`."""
    if scale not in ("auto", "log", "linear"):
        raise ValueError(f"scale must be auto, log or linear, got {scale!r}")
    if scale != "auto":
        return scale == "log"
    finite = np.concatenate([curve.mean[np.isfinite(curve.mean)] for curve in curves]) if curves else np.empty(0)
    if not finite.size or finite.min() < 0 or (finite <= 0).mean() > 0.05:
        return False
    return decades(finite) > math.log10(LOG_RATIO)


def _interval(data: Series, theme: Theme) -> list[dict[str, Any]]:
    """Area between noise_scale_low and noise_scale_high; an upper end that is not finite leaves it open there."""
    if "noise_scale_low" not in data.series or "noise_scale_high" not in data.series:
        return []
    low, high = data.series["noise_scale_low"].mean, data.series["noise_scale_high"].mean
    present = np.asarray(data.series["noise_scale"].present, bool)
    return band(np.asarray(data.x)[present], low[present], high[present], theme.lines[0], "interval", log=True)
