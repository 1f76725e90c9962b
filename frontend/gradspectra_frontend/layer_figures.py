"""Figures of one number per layer and step: heatmaps of layer × step, and curves of single layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from gradspectra_core.statistics import STATISTICS
from gradspectra_core.views import Buckets, LayerSeries

from gradspectra_frontend.heatmap import Grid, edges, gridded, log_ticks, packed, row_order, short_names
from gradspectra_frontend.marks import MARK_AXIS, Array, Curve, curve_traces, plain, shade_alerts
from gradspectra_frontend.theme import Figure, Theme, axis, base_layout, colour_scale, step_axis, value_ticks

SPECTRAL = ("effective_rank", "stable_rank", "participation_ratio")
"""Metrics that only matrices have: rows without any are left out."""

SIGNED = ("grad_dot_weight", "update_dot_grad", "weight_dot_init")
"""Statistics whose sign says which way: a heatmap draws their size, and tells the sign where it is pointed at."""

COUNTS = frozenset(name for name, entry in STATISTICS.items() if entry.dtype == "int64")
"""Statistics that count: 0 is as it should be."""

MAX_CURVES = 12
ROW_HEIGHT = 15
ZERO, NOT_FINITE = 1.0, 2.0
MARKED_CELLS = 400
"""Up to this many cells that are not finite are marked with a cross too, so that one is seen at any zoom."""

TITLES = {
    "grad_norm": "Gradient norm",
    "weight_norm": "Weight norm",
    "update_norm": "Update norm",
    "update_ratio": "Update-to-weight ratio",
    "drift_norm": "Distance from the start",
    "drift_ratio": "Distance from the start, relative to the weights",
    "rotation": "Rotation away from the start",
    "weight_dot_init": "Inner product of weights and start",
    "effective_rank": "Effective rank of the gradient",
    "stable_rank": "Stable rank of the gradient",
    "participation_ratio": "Participation ratio of the gradient",
    "noise_scale": "Gradient noise scale",
    "grad_max": "Largest gradient entry",
    "grad_nonfinite": "Gradient entries that are not finite",
    "grad_l1": "Sum of the gradient's absolute entries",
    "grad_zero_rows": "Output units without gradient",
    "grad_dot_weight": "Inner product of gradient and weights",
    "update_dot_grad": "Inner product of update and gradient",
    "moment_sq": "Adam's first moment, sum of squares",
    "second_moment": "Adam's second moment, sum",
    "second_moment_median": "Adam's second moment, median root",
    "rounding_lost": "Share of the update lost in rounding",
    "act_max": "Largest output of the module",
    "act_nonfinite": "Outputs that are not finite",
}


def layers(
    data: LayerSeries,
    alerts: Sequence[Mapping[str, Any]],
    theme: Theme,
    *,
    order: str = "depth",
    compact: bool = False,
    name: str = "layers",
) -> Figure:
    """Heatmap layer × step of one statistic or metric, colour in log scale. Reads one layer statistic.

    order: "depth" (embedding first, head last), "role" or "name". compact: leave out z where `_told` says that it can
    be told from customdata. A bucket of several steps shows its largest value, so a spike of one step stays visible; a
    measurement holds until the next of its row. Grey: missing. Black: zero or negative; where a count is 0 the paper's
    colour. Magenta with a cross: NaN or inf in that bucket. Alerts are marked at the top. Statistics that have a sign
    are drawn by their size.
    """
    title = TITLES.get(data.statistic, plain(data.statistic.replace("_", " ")))
    rows = [row for row in row_order(data, order) if data.statistic not in SPECTRAL or data.present[row].any()]
    grid = _cells(data, rows)
    x, value, here = grid.x, grid.value, grid.present
    size = np.abs(value) if data.statistic in SIGNED else value
    finite = np.isfinite(value)
    bad = here & ((grid.nonfinite > 0) | ~finite)
    good = here & finite & (size > 0)
    names = [plain(data.layers[i]) for i in rows]
    figure: Figure = {"data": [], "layout": heatmap_layout(data, theme, title, name, names, rows)}
    nothing = ("none", theme.paper) if data.statistic in COUNTS else ("zero or negative", theme.zero)
    if rows and len(x):
        code = np.full(value.shape, np.nan, np.float32)
        code[here & ~good] = ZERO
        code[bad] = NOT_FINITE
        values = _values_trace(x, names, value, size, good, theme, compact=compact)
        figure["data"] = [values, *code_traces(x, names, code, nothing, theme)]
        figure["layout"]["xaxis"]["autorangeoptions"] = edges(x)
        mark_cells(figure, x, names, code, nothing, theme)
    shade_alerts(figure, alerts, theme, data.x)
    figure["layout"]["shapes"] = []  # shading would change the colours of the cells
    return figure


def effective_rank(
    data: LayerSeries,
    alerts: Sequence[Mapping[str, Any]],
    theme: Theme,
    *,
    order: str = "depth",
    compact: bool = False,
) -> Figure:
    """Heatmap of the gradients' effective rank, layer × step. Reads the layer metric effective_rank."""
    return layers(data, alerts, theme, order=order, compact=compact, name="effective_rank")


def layer_curves(
    data: LayerSeries, alerts: Sequence[Mapping[str, Any]], theme: Theme, *, layer: str | Sequence[str] | None = None
) -> Figure:
    """Curves of one statistic for single layers, with the band from minimum to maximum. Reads one layer statistic.

    layer: a name or several; None takes the first MAX_CURVES. Names that the data lacks are left out.
    """
    wanted = [layer] if isinstance(layer, str) else list(layer or data.layers)
    rows = [data.layers.index(name) for name in wanted if name in data.layers][:MAX_CURVES]
    title = TITLES.get(data.statistic, plain(data.statistic.replace("_", " ")))
    layout = base_layout(theme, _titled(title, data), f"layer_curves {data.statistic}")
    finite = data.mean[rows][np.isfinite(data.mean[rows])]
    log = bool(finite.size) and bool((finite > 0).mean() > 0.5) and data.statistic not in SIGNED
    layout["xaxis"] = step_axis(theme, data.axis, data.x, hoverformat=",d")
    layout["yaxis"] = axis(theme, title.lower(), type="log" if log else "linear", nticks=6, **value_ticks(log, finite))
    layout["yaxis2"] = dict(MARK_AXIS)
    layout["meta"] = {
        "figure": "layer_curves",
        "title": title,
        "note": retired_note(data),
        "last_step": int(data.x[-1]) if len(data.x) else 0,
        "layers": [data.layers[i] for i in rows],
    }
    figure: Figure = {"data": [], "layout": layout}
    for number, i in enumerate(rows):
        row = Buckets(data.mean[i], data.min[i], data.max[i], data.mean[i], data.nonfinite[i], data.present[i])
        curve = Curve.of(plain(data.layers[i]), data.x, row)
        figure["data"] += curve_traces(curve, theme.lines[number % len(theme.lines)], theme, log=log, hover=".4~g")
    shade_alerts(figure, alerts, theme, data.x)
    layout["showlegend"] = True
    return figure


def _cells(data: LayerSeries, rows: list[int]) -> Grid:
    """Cells of these rows: a bucket's largest value; of SIGNED the largest in size, negative if all of it is."""
    at = slice(None) if rows == list(range(len(data.layers))) else rows  # a slice copies nothing
    x, bad, here = np.asarray(data.x), data.nonfinite[at], np.asarray(data.present[at], bool)
    largest = gridded(x, data.max[at], bad, here)
    if data.statistic not in SIGNED:
        return largest
    sizes = gridded(x, np.maximum(np.abs(data.min[at]), np.abs(data.max[at])), bad, here)
    return replace(sizes, value=np.where(largest.value < 0, -sizes.value, sizes.value))


def retired_note(data: LayerSeries) -> str:
    """Say which steps are coarser than asked for because finer numbers were retired; empty where none are."""
    if not data.retired:
        return ""
    first, last = min(one[0] for one in data.retired), max(one[1] for one in data.retired)
    width = max(one[2] for one in data.retired)
    return f"steps {first:,} to {last:,} in buckets of {width:,}: finer ones were retired"


def _titled(title: str, data: LayerSeries) -> str:
    note = retired_note(data)
    return f"{title}<br><sub>{note}</sub>" if note else title


def heatmap_layout(
    data: LayerSeries, theme: Theme, title: str, name: str, names: list[str], rows: list[int]
) -> dict[str, Any]:
    """Layout of a heatmap whose rows, top to bottom, are these rows of the data, under these names."""
    height = min(max(ROW_HEIGHT * len(names) + 110, 260), 1100)
    layout = base_layout(theme, _titled(title, data), f"{name} {data.statistic}", height=height, hovermode="closest")
    layout["plot_bgcolor"] = theme.missing
    layout["xaxis"] = step_axis(theme, data.axis, data.x)
    each = max(1, -(-len(names) * 12 // max(height - 110, 1)))
    layout["yaxis"] = axis(
        theme,
        "",
        type="category",
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
        ticks="",
        tickvals=list(range(0, len(names), each)),
        ticktext=short_names(names)[::each],
        tickfont={"size": 10.5, "color": theme.muted, "family": "ui-monospace, monospace"},
    )
    layout["meta"] = {
        "figure": name,
        "title": title,
        "note": retired_note(data),
        "statistic": data.statistic,
        "last_step": int(data.x[-1]) if len(data.x) else 0,
        "layers": [data.layers[i] for i in rows],
        "roles": [data.roles[i] for i in rows],
    }
    return layout


def _values_trace(
    x: Array, names: list[str], value: Array, size: Array, drawn: Array, theme: Theme, *, compact: bool
) -> dict[str, Any]:
    """The cells that are `drawn`, by the size of their values; compact: without z where customdata tells it."""
    low, high = _extremes(size, drawn)
    with np.errstate(over="ignore"):
        narrow = value.astype(np.float32)
    signed = size is not value
    told = compact and _told(narrow, drawn, signed=signed)
    if high - low < 0.05:
        low, high = low - 0.025, high + 0.025
    ticks, texts = log_ticks(low, high)
    return {
        "type": "heatmap",
        "name": "value",
        "x": x,
        "y": names,
        **({} if told else {"z": packed(np.log10(size, out=np.full(size.shape, np.nan, np.float32), where=drawn))}),
        "customdata": packed(narrow),
        "zmin": low,
        "zmax": high,
        "colorscale": colour_scale(),
        "hoverongaps": False,
        "hovertemplate": "%{y}<br>step %{x:,d}<br><b>%{customdata:.5~g}</b><extra></extra>",
        "colorbar": {
            "tickvals": ticks,
            "ticktext": texts,
            "thickness": 12,
            "outlinewidth": 0,
            "tickfont": {"size": 11, "color": theme.muted},
            "xpad": 6,
        },
        **({"meta": "log10 of the size" if signed else "log10"} if told else {}),
    }


def _extremes(size: Array, drawn: Array) -> tuple[float, float]:
    """log10 of the least and of the greatest of the sizes that are drawn, in float32 as z is; -1 and 0 of none."""
    if not drawn.any():
        return -1.0, 0.0
    shown = size if drawn.all() else size[drawn]
    low, high = np.log10([shown.min(), shown.max()]).astype(np.float32).tolist()
    return low, high


def _told(narrow: Array, drawn: Array, *, signed: bool) -> bool:
    """Whether z is log10 of each value above 0 (signed: of its size) that customdata has, and NaN elsewhere.

    drawn: the cells that z has; a value that float32 cannot hold is not told from customdata.
    """
    return np.array_equal(np.isfinite(narrow) & ((np.abs(narrow) if signed else narrow) > 0), drawn)


def code_traces(
    x: Array, names: list[str], code: Array, nothing: tuple[str, str], theme: Theme
) -> list[dict[str, Any]]:
    """Layers over the values: cells that are zero or negative, and cells that are not finite."""
    kinds = ((ZERO, *nothing), (NOT_FINITE, "NaN or inf", theme.nonfinite))
    return [
        {
            "type": "heatmap",
            "name": label,
            "x": x,
            "y": names,
            "z": packed(np.where(code == kind, code, np.nan)),
            "colorscale": [[0, colour], [1, colour]],
            "showscale": False,
            "hoverongaps": False,
            "hovertemplate": f"%{{y}}<br>step %{{x:,d}}<br><b>{label}</b><extra></extra>",
        }
        for kind, label, colour in kinds
        if np.any(code == kind)
    ]


def mark_cells(figure: Figure, x: Array, names: list[str], code: Array, nothing: tuple[str, str], theme: Theme) -> None:
    """Legend entries for what the cells' special colours mean, and a cross on each cell that is not finite."""
    bad = code == NOT_FINITE
    if bad.any():
        row, column = np.nonzero(bad)
        few = slice(0, MARKED_CELLS)
        figure["data"].append(
            {
                "type": "scatter",
                "name": "NaN or inf",
                "x": x[column[few]],
                "y": [names[i] for i in row[few]],
                "mode": "markers",
                "marker": {
                    "symbol": "x",
                    "size": 7,
                    "color": theme.nonfinite,
                    "line": {"width": 1, "color": theme.paper},
                },
                "hoverinfo": "skip",
            }
        )
    for there, label, colour in (
        (bool(np.any(code == ZERO)), *nothing),
        (True, "missing", theme.missing),
    ):
        if there:
            marker = {"symbol": "square", "size": 10, "color": colour, "line": {"width": 1, "color": theme.axis}}
            figure["data"].append(
                {"type": "scatter", "name": label, "x": [None], "y": [names[0]], "mode": "markers", "marker": marker}
            )
    figure["layout"]["showlegend"] = True
