"""What every curve is drawn with: broken lines, bands, smoothing, marks for what a line cannot show, alerts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gradspectra_core.views import Buckets
from numpy.typing import NDArray

from gradspectra_frontend.theme import Figure, Theme, faded

Trace = dict[str, Any]
Array = NDArray[Any]

MARK_AXIS = {"overlaying": "y", "range": [0, 1], "fixedrange": True, "visible": False}
"""Second y axis from 0 (bottom) to 1 (top), for marks that have no value of their own."""

FEW = 40
"""Up to this many points a line also gets dots, so that single steps can be seen."""

JUMP = 4.0
"""A distance this many times its neighbours' is a hole in the data, not a coarser cadence."""

MAX_SHADES = 60

LARGEST, SMALLEST = 1e300, 1e-300
"""Of sizes beyond these Plotly cannot make a linear axis: its length is no float64 any more, or one over it is none."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One series without its absent entries. x: (n,); mean, low, high: (n,) float64; nonfinite: (n,) counts."""

    label: str
    x: Array
    mean: Array
    low: Array
    high: Array
    nonfinite: Array

    @classmethod
    def of(cls, label: str, x: Array, buckets: Buckets) -> Curve:
        """Take the entries that are present."""
        keep = np.asarray(buckets.present, bool)
        return cls(
            label,
            np.asarray(x)[keep],
            np.asarray(buckets.mean, float)[keep],
            np.asarray(buckets.min, float)[keep],
            np.asarray(buckets.max, float)[keep],
            np.asarray(buckets.nonfinite)[keep],
        )


def holes(x: Array) -> Array:
    """Say after which entries of x (n,) the data has a hole: indices i where x[i+1] − x[i] stands out.

    A distance stands out where it is more than JUMP times both neighbouring distances, so a measurement that
    turns from every step to every 8th is no hole, and a range of lost steps is one.
    """
    return np.flatnonzero(_strides(x) > JUMP)


def _strides(x: Array) -> Array:
    """Distances between the entries of x (n,), as shares of the larger of the two beside each: (n - 1,)."""
    distance = np.diff(np.asarray(x, float))
    if distance.size < 2:
        return np.ones(distance.size)
    before = np.concatenate(([distance[1]], distance[:-1]))
    after = np.concatenate((distance[1:], [distance[-2]]))
    beside = np.maximum(before, after)
    return np.asarray(np.divide(distance, beside, out=np.where(distance > 0, np.inf, 1.0), where=beside > 0))


def broken(x: Array, *rows: Array, at: Array | None = None) -> tuple[Array, ...]:
    """Insert one NaN entry into each row after the holes of x (the x itself is repeated there), so lines break."""
    where = (holes(x) if at is None else at) + 1
    return (np.insert(x, where, np.asarray(x)[where - 1]), *(np.insert(row, where, np.nan) for row in rows))


def smoothed(x: Array, y: Array, window: float) -> Array:
    """Exponential moving average over the entries of y (n,), without bias at its start; NaN stays NaN and is skipped.

    x: (n,), ascending; in a hole of it as much is forgotten as if its entries were there. window: time constant in
    entries, above 0.
    """
    keep = np.exp(-1.0 / window)
    stride = _strides(x)
    left = np.exp(np.where(stride > JUMP, 1.0 - stride, 0.0) / window)
    out = np.full(y.shape, np.nan)
    total = weight = 0.0
    for i, value in enumerate(y.tolist()):
        if i and left[i - 1] != 1:
            total, weight = total * left[i - 1], weight * left[i - 1]
        if value == value:
            total = keep * total + (1 - keep) * value
            weight = keep * weight + (1 - keep)
            out[i] = total / weight
    return out


def drawable(y: Array, log: bool) -> Array:
    """Copy of y with NaN where a line cannot go: what is not finite, on a log axis also what is not positive.

    On a linear axis sizes above LARGEST are NaN too, and those below SMALLEST are 0.
    """
    if log:
        return np.where(np.isfinite(y) & (y > 0), y, np.nan)
    size = np.abs(y)
    return np.where(size <= LARGEST, np.where(size < SMALLEST, 0.0, y), np.nan)


def curve_traces(
    curve: Curve, colour: str, theme: Theme, *, log: bool, smooth: float = 0.0, dash: str = "solid", hover: str = ".5~g"
) -> list[Trace]:
    """Band from minimum to maximum (where buckets hold more than one value), raw mean, and smoothing drawn over it.

    smooth: time constant of the smoothing in entries; 0 for none. hover: d3 format of the values.
    """
    mean = drawable(curve.mean, log)
    x, y = broken(curve.x, mean)
    raw = {
        "type": "scatter",
        "name": curve.label,
        "x": x,
        "y": y,
        "mode": "lines+markers" if len(curve.x) <= FEW else "lines",
        "marker": {"size": 5, "color": colour},
        "line": {"color": colour, "width": 1.6, "dash": dash},
        "hovertemplate": f"%{{y:{hover}}}",
        "legendgroup": curve.label,
    }
    name = f"{curve.label}, min to max"
    traces = [*band(curve.x, curve.low, curve.high, colour, name, log=log, group=curve.label), raw]
    if smooth > 0 and np.isfinite(mean).sum() > 2:
        raw["line"] = {"color": faded(colour, 0.38), "width": 1.1, "dash": dash}
        x, over = broken(curve.x, smoothed(curve.x, mean, smooth))
        traces.append(
            {
                "type": "scatter",
                "name": f"{curve.label}, smoothed",
                "x": x,
                "y": over,
                "mode": "lines",
                "line": {"color": colour, "width": 2.2},
                "hovertemplate": f"%{{y:{hover}}}",
                "legendgroup": f"{curve.label}, smoothed",
                "meta": "smoothed",
            }
        )
    return [*traces, *_lost_marks(curve, theme, log=log)]


def band(x: Array, low: Array, high: Array, colour: str, name: str, *, log: bool, group: str = "") -> list[Trace]:
    """Filled area from low to high, one closed outline for each unbroken stretch; [] where it is nowhere open.

    On a log axis a low end of zero or less reaches down to the smallest value that the axis shows.
    """
    low, high = drawable(low, log), drawable(high, log)
    if log and np.isfinite(low).any():
        low = np.where(np.isfinite(high) & ~np.isfinite(low), np.nanmin(low), low)
    good = np.isfinite(low) & np.isfinite(high)
    if not np.any(good & (high > low)):
        return []
    cuts = np.union1d(holes(x), np.flatnonzero(~good[:-1] | ~good[1:]))
    xs: list[Any] = []
    ys: list[Any] = []
    for part in np.split(np.arange(len(x)), cuts + 1):
        if len(part) > 1 and good[part].all():
            xs += [*x[part].tolist(), *x[part][::-1].tolist(), None]
            ys += [*high[part].tolist(), *low[part][::-1].tolist(), None]
    return [
        {
            "type": "scatter",
            "name": name,
            "x": xs,
            "y": ys,
            "mode": "lines",
            "line": {"width": 0, "color": colour},
            "fill": "toself",
            "fillcolor": faded(colour, 0.18),
            "hoverinfo": "skip",
            "showlegend": not group,
            "legendgroup": group or name,
        }
    ]


def _lost_marks(curve: Curve, theme: Theme, *, log: bool) -> list[Trace]:
    """Marks for values that no line can show: not finite or too large at the top of the plot, ≤ 0 at its bottom."""
    traces = []
    bad = (curve.nonfinite > 0) | ~np.isfinite(curve.mean)
    if bad.any():
        what = ["NaN" if np.isnan(m) else "+inf" if m > 0 else "−inf" for m in curve.mean[bad]]
        what = [
            kind if not np.isfinite(m) else f"{n} not finite"
            for kind, m, n in zip(what, curve.mean[bad], curve.nonfinite[bad], strict=True)
        ]
        traces.append(_edge(f"{curve.label}: NaN or inf", curve.x[bad], 0.965, "x", theme.nonfinite, what))
    huge = np.isfinite(curve.mean) & (np.abs(curve.mean) > LARGEST)
    if not log and huge.any():
        values = [f"{value:.5g}" for value in curve.mean[huge]]
        traces.append(_edge(f"{curve.label}: too large", curve.x[huge], 0.965, "triangle-up", theme.nonfinite, values))
    lowest = np.isfinite(curve.mean) & (curve.mean <= 0)
    if log and lowest.any():
        values = [f"{value:.5g}" for value in curve.mean[lowest]]
        traces.append(
            _edge(f"{curve.label}: ≤ 0, below a log axis", curve.x[lowest], 0.03, "triangle-down", theme.muted, values)
        )
    return traces


def _edge(name: str, x: Array, height: float, symbol: str, colour: str, text: Sequence[str]) -> Trace:
    return {
        "type": "scatter",
        "name": name,
        "x": x,
        "y": [height] * len(x),
        "yaxis": "y2",
        "mode": "markers",
        "cliponaxis": False,
        "marker": {"symbol": symbol, "size": 9, "color": colour, "line": {"width": 1, "color": colour}},
        "text": list(text),
        "hovertemplate": "%{text}",
    }


def shade_alerts(figure: Figure, alerts: Sequence[Mapping[str, Any]], theme: Theme, x: Array) -> None:
    """Shade the episodes of alerts in a figure over steps, and mark where each opened (with its message on hover).

    x: (N,) steps of the figure's data: what lies outside of them is left out, so that it does not widen the axis. An
    alert that is still open is shaded to their end: its last step is the last one that told something new. Of more
    than MAX_SHADES the newest are drawn; those of one severity that overlap have one shade.
    """
    inside = [alert for alert in alerts if len(x) and alert["opened_step"] <= x[-1] and _last_step(alert, x) >= x[0]]
    shown = sorted(inside, key=lambda alert: int(alert["opened_step"]))[-MAX_SHADES:]
    if not shown:
        return
    for severity, first, last in _episodes(shown, x):
        colour = theme.severity.get(severity, theme.severity["info"])
        figure["layout"]["shapes"].append(
            {
                "type": "rect",
                "layer": "below",
                "yref": "paper",
                "x0": first,
                "x1": last,
                "y0": 0,
                "y1": 1,
                "fillcolor": faded(colour, 0.16),
                "line": {"width": 1, "color": faded(colour, 0.45)},
            }
        )
    shown = [alert for alert in shown if alert["opened_step"] >= x[0]]
    colours = [theme.severity.get(str(alert["severity"]), theme.severity["info"]) for alert in shown]
    figure["data"].append(
        {
            "type": "scatter",
            "name": "alerts",
            "x": [alert["opened_step"] for alert in shown],
            "y": [1.0] * len(shown),
            "yaxis": "y2",
            "mode": "markers",
            "cliponaxis": False,
            "marker": {"symbol": "triangle-down", "size": 11, "color": colours},
            "text": [_one_line(alert) for alert in shown],
            "customdata": [str(alert.get("id", "")) for alert in shown],
            "hovertemplate": "%{text}",
            "showlegend": False,
            "meta": "alerts",
        }
    )
    figure["layout"]["yaxis2"] = dict(MARK_AXIS)


def _episodes(alerts: Sequence[Mapping[str, Any]], x: Array) -> list[tuple[str, int, int]]:
    """Severity, first and last step of the alerts, in their order; those of one severity that overlap are one.

    Many shades over each other would hide the curves.
    """
    found: dict[str, list[tuple[str, int, int]]] = {}
    for alert in alerts:
        severity, first = str(alert["severity"]), max(int(alert["opened_step"]), int(x[0]))
        last, known = min(_last_step(alert, x), int(x[-1])), found.setdefault(severity, [])
        if known and first <= known[-1][2]:
            _, first, before = known.pop()
            last = max(last, before)
        known.append((severity, first, last))
    return [one for some in found.values() for one in some]


def plain(text: str) -> str:
    """Text that Plotly shows as it is: it would take <b>, <a …> and the like as markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _last_step(alert: Mapping[str, Any], x: Array) -> int:
    going_on = alert.get("closed_step") is None and alert.get("state") in ("open", "acknowledged")
    last = x[-1] if going_on else alert.get("closed_step") or alert.get("last_step") or 0
    return max(int(last), int(alert["opened_step"]))


def _one_line(alert: Mapping[str, Any]) -> str:
    rule = plain(str(alert["rule"]).replace("_", " "))
    message = plain(str(alert.get("message") or ""))
    return f"{alert['severity']}: {message or rule}"
