"""How a statistic of the layers differs between two runs: a heatmap layer × step of its relative difference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from gradspectra_core.views import LayerSeries

from gradspectra_frontend.damage import tell_damage
from gradspectra_frontend.heatmap import Grid, edges, gridded, packed, row_order
from gradspectra_frontend.layer_figures import (
    NOT_FINITE,
    SIGNED,
    SPECTRAL,
    TITLES,
    ZERO,
    code_traces,
    heatmap_layout,
    mark_cells,
)
from gradspectra_frontend.marks import Array, plain
from gradspectra_frontend.theme import Figure, Theme

LARGEST = 5.0
"""Ratios of more than 2 to this power, or less than 1 to it, have the colour of it."""

LEAST = 0.05
RATIOS = (1.01, 1.02, 1.05, 1.1, 1.2, 1.5, 2.0, 4.0, 8.0, 16.0, 32.0)


def difference(first: LayerSeries, other: LayerSeries, theme: Theme, *, order: str = "depth") -> Figure:
    """Heatmap layer × step of (a − b) / b, a of the first run and b of the other, for the layers that both have.

    Colour is log2(a / b), so that twice as much and half as much are as far from white; customdata has (a − b) / b. a
    and b are means of a bucket of steps, and hold until the next measurement. Only steps that both runs have are drawn.
    Black: 0 in one of the runs alone. Magenta: NaN or inf in one of them. `layout.meta.note` counts the layers that
    one run alone has. Raises ValueError for an unknown order, and for a statistic that has a sign.
    """
    if first.statistic in SIGNED:
        raise ValueError(f"{first.statistic} has a sign, so a ratio of two runs says nothing")
    both = [name for name in first.layers if name in set(other.layers)]
    a, b = _chosen(first, both), _chosen(other, both)
    measured = np.any(a.present, axis=1) & np.any(b.present, axis=1)
    rows = [i for i in row_order(a, order) if measured[i] or a.statistic not in SPECTRAL]
    x, left, right = _aligned(_grid(a, rows), _grid(b, rows))
    title = f"{TITLES.get(a.statistic, plain(a.statistic.replace('_', ' ')))}: relative difference"
    names = [plain(both[i]) for i in rows]
    layout = heatmap_layout(replace(a, x=x), theme, title, "difference", names, rows)
    alone = len(set(first.layers) ^ set(other.layers))
    notes = [layout["meta"]["note"], f"{alone:,} layers are in one run only" if alone > 1 else ""]
    notes += ["1 layer is in one run only" if alone == 1 else ""]
    layout["meta"]["note"] = "; ".join(note for note in notes if note)
    figure: Figure = {"data": [], "layout": layout}
    if rows and len(x):
        layout["xaxis"]["autorangeoptions"] = edges(x)
        figure["data"] = _traces(figure, x, names, left, right, theme)
    tell_damage(figure, sorted({*first.damaged, *other.damaged}))
    return figure


def _chosen(data: LayerSeries, names: list[str]) -> LayerSeries:
    at = [data.layers.index(name) for name in names]
    arrays = {name: getattr(data, name)[at] for name in ("mean", "min", "max", "nonfinite", "present")}
    return replace(
        data,
        layers=tuple(names),
        roles=tuple(data.roles[i] for i in at),
        depths=tuple(data.depths[i] for i in at),
        **arrays,
    )


def _grid(data: LayerSeries, rows: list[int]) -> Grid:
    return gridded(np.asarray(data.x), data.mean[rows], data.nonfinite[rows], np.asarray(data.present[rows], bool))


def _aligned(a: Grid, b: Grid) -> tuple[Array, Grid, Grid]:
    """Bring two grids to the columns that both span, as wide as the wider of the two's: (columns, a there, b there)."""
    if not len(a.x) or not len(b.x):
        return np.empty(0, np.int64), a, b
    widths = [float(grid.x[1] - grid.x[0]) if len(grid.x) > 1 else 1.0 for grid in (a, b)]
    begin = max(a.x[0], b.x[0])
    end = min(grid.x[-1] + width for grid, width in zip((a, b), widths, strict=True))
    x = begin + max(widths) * np.arange(max(np.ceil((end - begin) / max(widths)), 0))
    at_a, at_b = (np.searchsorted(grid.x, x, side="right") - 1 for grid in (a, b))
    return x.astype(np.int64), _columns(a, at_a), _columns(b, at_b)


def _columns(grid: Grid, at: Array) -> Grid:
    return Grid(grid.x[at], grid.value[:, at], grid.nonfinite[:, at], grid.present[:, at])


def _traces(figure: Figure, x: Array, names: list[str], a: Grid, b: Grid, theme: Theme) -> list[dict[str, Any]]:
    here = a.present & b.present
    finite = np.isfinite(a.value) & np.isfinite(b.value) & (a.nonfinite == 0) & (b.nonfinite == 0)
    same = here & finite & (a.value == b.value)
    ratio = here & finite & (a.value > 0) & (b.value > 0)
    log, relative = np.where(same, 0.0, np.nan), np.where(same, 0.0, np.nan)
    np.log2(a.value / np.where(ratio, b.value, 1.0), out=log, where=ratio)
    np.divide(a.value - b.value, np.where(ratio, b.value, 1.0), out=relative, where=ratio)
    code = np.full(log.shape, np.nan)
    code[here & ~(same | ratio)] = ZERO
    code[here & ~finite] = NOT_FINITE
    nothing = ("zero in one run", theme.zero)
    traces = [_values(x, names, log, relative, theme), *code_traces(x, names, code, nothing, theme)]
    marked: Figure = {"data": traces, "layout": figure["layout"]}
    mark_cells(marked, x, names, code, nothing, theme)
    return traces


def _values(x: Array, names: list[str], log: Array, relative: Array, theme: Theme) -> dict[str, Any]:
    sizes = np.abs(log[np.isfinite(log)])
    limit = float(np.clip(sizes.max() if sizes.size else 0.0, LEAST, LARGEST))
    fitting = [ratio for ratio in RATIOS if np.log2(ratio) <= limit + 1e-9][-2:]
    ticks = (
        [(-np.log2(r), f"÷ {r:g}") for r in fitting[::-1]]
        + [(0.0, "same")]
        + [(np.log2(r), f"× {r:g}") for r in fitting]
    )
    return {
        "type": "heatmap",
        "name": "relative difference",
        "x": x,
        "y": names,
        "z": packed(log),
        "customdata": packed(relative),
        "zmin": -limit,
        "zmax": limit,
        "colorscale": [[0, theme.lines[0]], [0.5, theme.paper], [1, theme.lines[1]]],
        "hoverongaps": False,
        "hovertemplate": "%{y}<br>step %{x:,d}<br><b>%{customdata:+.2%}</b><extra></extra>",
        "colorbar": {
            "tickvals": [float(place) for place, _ in ticks],
            "ticktext": [text for _, text in ticks],
            "tickangle": 0,
            "thickness": 12,
            "outlinewidth": 0,
            "tickfont": {"size": 11, "color": theme.muted},
            "xpad": 6,
        },
    }
