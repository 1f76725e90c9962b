"""Figures of singular values: the spectrum of a layer at its steps, and its ranks over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gradspectra_core.views import Spectrum

from gradspectra_frontend.marks import FEW, MARK_AXIS, Array, broken, drawable, plain, shade_alerts
from gradspectra_frontend.noise_floor import noise_effective_rank
from gradspectra_frontend.theme import SEQUENCE, Figure, Theme, axis, base_layout, colour_scale, step_axis, value_ticks

MAX_BEHIND = 24
"""So many other steps are drawn, thinly, behind the chosen one."""

COLOURS = {"light": SEQUENCE[1:-2], "dark": SEQUENCE[3:]}
"""Steps are coloured from early to late, by theme: the end that would vanish on its paper is left out."""


def spectrum(
    data: Sequence[Spectrum], alerts: Sequence[Mapping[str, Any]], theme: Theme, *, step: int | None = None
) -> Figure:
    """Singular values against their index, log-log: the chosen step drawn over the others, coloured by step.

    Reads the spectra of one layer. step: the nearest spectrum at or before it is chosen; None takes the last.
    Values of zero do not appear on the log axis. `layout.meta.steps` lists the steps there are, `layout.meta.step`
    the chosen one.
    """
    del alerts  # there is no step axis to mark them on
    ordered = sorted(data, key=lambda one: one.step)
    title = f"Singular values of the {ordered[0].of}" if ordered else "Singular values"
    layout = base_layout(theme, title, f"spectrum {ordered[0].layer if ordered else ''}", hovermode="closest")
    layout["xaxis"] = axis(theme, "index", type="log", showgrid=False)
    layout["yaxis"] = axis(theme, "singular value", type="log", nticks=7)
    layout["showlegend"] = False
    figure: Figure = {"data": [], "layout": layout}
    drawn = np.concatenate([np.empty(0), *(drawable(np.asarray(one.singular_values, float), True) for one in ordered)])
    layout["xaxis"]["dtick"] = _index_tick(
        max((int(one.index.max()) + 1 for one in ordered if len(one.index)), default=1)
    )
    layout["yaxis"] |= value_ticks(True, drawn)
    steps = [one.step for one in ordered]
    layout["meta"] = {"figure": "spectrum", "title": title, "steps": steps, "step": None, "last_step": 0}
    if not ordered:
        return figure
    chosen = len(ordered) - 1 if step is None else max(int(np.searchsorted(steps, step, side="right")) - 1, 0)
    behind = np.unique(np.linspace(0, len(ordered) - 1, min(MAX_BEHIND, len(ordered))).round().astype(int))
    for i in behind:
        if i != chosen:
            figure["data"].append(_line(ordered[i], _colour(steps[i], steps, theme), 1.0, 0.55))
    figure["data"].append(_line(ordered[chosen], theme.lines[1], 2.6, 1.0) | {"mode": "lines+markers", "meta": "step"})
    if len(ordered) > 1:
        figure["data"].append(_step_bar(steps, theme))
    layout["meta"] |= {"step": steps[chosen], "last_step": steps[-1]} | _facts(ordered[chosen])
    return figure


def _index_tick(last: int) -> int | str:
    """Which indices up to the last have a tick on a log axis: all, those that begin with 1, 2 or 5, or each decade."""
    return "D1" if last <= 10 else "D2" if last <= 100 else 1


def ranks(data: Sequence[Spectrum], alerts: Sequence[Mapping[str, Any]], theme: Theme) -> Figure:
    """Effective, participation and stable rank over steps, with the effective rank of pure noise as a line.

    Reads the spectra of one layer. A gradient whose effective rank reaches the noise line has no visible structure.
    """
    ordered = sorted(data, key=lambda one: one.step)
    title = f"Ranks of the {ordered[0].of}" if ordered else "Ranks"
    layout = base_layout(theme, title, f"ranks {ordered[0].layer if ordered else ''}")
    layout["xaxis"] = step_axis(theme, "step", [one.step for one in ordered], hoverformat=",d")
    layout["yaxis"] = axis(theme, "rank", type="log", nticks=6)
    layout["yaxis2"] = dict(MARK_AXIS)
    last = ordered[-1].step if ordered else 0
    layout["meta"] = {"figure": "ranks", "title": title, "last_step": last}
    figure: Figure = {"data": [], "layout": layout}
    if not ordered:
        return figure
    steps = np.array([one.step for one in ordered])
    curves = {
        "effective rank": np.exp([one.entropy for one in ordered]),
        "participation ratio": _ratio([one.frobenius_sq**2 for one in ordered], [one.fourth for one in ordered]),
        "stable rank": _ratio([one.frobenius_sq for one in ordered], [one.operator**2 for one in ordered]),
    }
    for colour, (name, values) in zip(theme.lines, curves.items(), strict=False):
        x, y = broken(steps, drawable(values, log=True))
        mode = "lines+markers" if len(steps) <= FEW else "lines"
        line = {"color": colour, "width": 1.8}
        hover = "%{y:.4~g}"
        figure["data"].append(
            {"type": "scatter", "name": name, "x": x, "y": y, "mode": mode, "line": line, "hovertemplate": hover}
        )
    figure["data"].append(_noise_line(ordered, theme))
    layout["yaxis"] |= value_ticks(True, np.concatenate([*curves.values(), figure["data"][-1]["y"]]))
    shade_alerts(figure, alerts, theme, steps)
    return figure


def _ratio(above: list[float], below: list[float]) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: Array = np.asarray(above) / np.asarray(below)
    return ratio


def _line(one: Spectrum, colour: str, width: float, opacity: float) -> dict[str, Any]:
    values = drawable(np.asarray(one.singular_values, float), log=True)
    return {
        "type": "scatter",
        "name": f"step {one.step:,}",
        "x": np.asarray(one.index) + 1,
        "y": values,
        "mode": "lines",
        "line": {"color": colour, "width": width},
        "marker": {"size": 4, "color": colour},
        "opacity": opacity,
        "hovertemplate": f"step {one.step:,}<br>σ<sub>%{{x}}</sub> = <b>%{{y:.5~g}}</b><extra></extra>",
    }


def _colour(step: int, steps: list[int], theme: Theme) -> str:
    share = (step - steps[0]) / max(steps[-1] - steps[0], 1)
    colours = COLOURS[theme.name]
    return colours[min(int(share * len(colours)), len(colours) - 1)]


def _step_bar(steps: list[int], theme: Theme) -> dict[str, Any]:
    """Colour bar for the steps, on a trace without points."""
    bar = {
        "title": {"text": "step", "font": {"size": 11, "color": theme.muted}},
        "thickness": 10,
        "outlinewidth": 0,
        "nticks": 5,
        "tickfont": {"size": 11, "color": theme.muted},
        "tickformat": ",~d",
    }
    marker = {
        "color": [steps[0]],
        "cmin": steps[0],
        "cmax": steps[-1],
        "colorscale": colour_scale(COLOURS[theme.name]),
        "showscale": True,
        "colorbar": bar,
    }
    return {"type": "scatter", "x": [None], "y": [None], "mode": "markers", "marker": marker, "hoverinfo": "skip"}


def _facts(one: Spectrum) -> dict[str, Any]:
    """Numbers of the chosen spectrum that the page says in words beside the figure."""
    return {
        "layer": one.layer,
        "of": one.of,
        "method": plain(one.method),
        "rows": one.rows,
        "columns": one.columns,
        "effective_rank": float(np.exp(one.entropy)),
        "operator": one.operator,
        "nuclear": one.nuclear,
        "k90": one.k90,
        "k99": one.k99,
        "noise_effective_rank": noise_effective_rank(one.rows, one.columns),
    }


def _noise_line(ordered: Sequence[Spectrum], theme: Theme) -> dict[str, Any]:
    height = noise_effective_rank(ordered[-1].rows, ordered[-1].columns)
    return {
        "type": "scatter",
        "name": "effective rank of pure noise",
        "x": [ordered[0].step, ordered[-1].step],
        "y": [height, height],
        "mode": "lines" if len(ordered) > 1 else "markers",
        "marker": {"symbol": "line-ew-open", "size": 14, "color": theme.muted},
        "line": {"color": theme.muted, "width": 1.4, "dash": "dash"},
        "hovertemplate": "%{y:.4~g}",
    }
