"""Figure of the learning-rate suggestions: one bar per layer, from 1× to the multiplier, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradspectra_frontend.heatmap import short_names
from gradspectra_frontend.marks import plain
from gradspectra_frontend.theme import Figure, Theme, axis, base_layout

QUANTITY = "learning_rate_multiplier"
TICKS = {-2.0: "¼×", -1.0: "½×", 0.0: "1×", 1.0: "2×", 2.0: "4×"}


def suggestions(
    data: Sequence[Mapping[str, Any]], alerts: Sequence[Mapping[str, Any]], theme: Theme, *, title: str = ""
) -> Figure:
    """Suggested multiplier of each layer's learning rate (log₂), coloured by confidence. Reads the suggestions.

    Layers without enough evidence get a grey dot at 1×: 'leave as it is'. Other suggestions are left out.
    """
    del alerts  # there is no step axis to mark them on
    rows = [one for one in data if one["quantity"] == QUANTITY and one.get("layer")]
    names = [plain(str(one["layer"])) for one in rows]
    layout = base_layout(theme, title or "Suggested learning-rate multiplier by layer", "suggestions")
    height = int(np.clip(17 * len(rows) + 120, 220, 1400))
    layout |= {"height": height, "hovermode": "closest", "barmode": "overlay", "bargap": 0.35}
    layout["xaxis"] = axis(
        theme, "multiplier", tickvals=list(TICKS), ticktext=list(TICKS.values()), range=[-2.2, 2.2], side="bottom"
    )
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": theme.ink, "zerolinewidth": 1}
    each = max(1, int(np.ceil(len(names) * 14 / max(height - 120, 1))))
    layout["yaxis"] = axis(
        theme,
        "",
        type="category",
        range=[len(names) - 0.5, -0.5],
        showgrid=False,
        ticks="",
        categoryorder="array",
        categoryarray=names,
        tickvals=list(range(0, len(names), each)),
        ticktext=short_names(names)[::each],
        tickfont={"size": 10.5, "color": theme.muted, "family": "ui-monospace, monospace"},
    )
    since = max((int(one.get("since_step") or 0) for one in rows), default=0)
    layout["meta"] = {"figure": "suggestions", "title": layout["title"]["text"], "last_step": since}
    traces = [_bars(rows, names, level, theme) for level in ("high", "medium", "low")]
    figure: Figure = {"data": [trace for trace in traces if trace], "layout": layout}
    unsure = [name for one, name in zip(rows, names, strict=True) if not one["enough_evidence"]]
    if unsure:
        figure["data"].append(_unsure(unsure, theme))
    layout["showlegend"] = True
    return figure


def _bars(rows: Sequence[Mapping[str, Any]], names: list[str], level: str, theme: Theme) -> dict[str, Any] | None:
    chosen = [
        (one, name)
        for one, name in zip(rows, names, strict=True)
        if one["enough_evidence"] and one["confidence"] == level and one["value"] is not None and one["value"] > 0
    ]
    if not chosen:
        return None
    value = np.log2([one["value"] for one, _ in chosen])
    low = np.log2([one["low"] if one.get("low") else one["value"] for one, _ in chosen])
    high = np.log2([one["high"] if one.get("high") else one["value"] for one, _ in chosen])
    return {
        "type": "bar",
        "orientation": "h",
        "name": f"{level} confidence",
        "x": value,
        "y": [name for _, name in chosen],
        "marker": {"color": theme.confidence[level]},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": np.maximum(high - value, 0),
            "arrayminus": np.maximum(value - low, 0),
            "color": theme.ink,
            "thickness": 1,
            "width": 3,
        },
        "customdata": [[one["value"], one.get("low"), one.get("high")] for one, _ in chosen],
        "hovertemplate": "%{y}<br><b>%{customdata[0]:.3~f}×</b> (%{customdata[1]:.3~f} to %{customdata[2]:.3~f})"
        f"<br>{level} confidence<extra></extra>",
    }


def _unsure(names: list[str], theme: Theme) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": "not enough evidence",
        "x": [0] * len(names),
        "y": names,
        "mode": "markers",
        "marker": {"symbol": "circle-open", "size": 7, "color": theme.muted, "line": {"width": 1.5}},
        "hovertemplate": "%{y}<br>not enough evidence: leave as it is<extra></extra>",
    }
