"""Our one theme, light and dark: colours, fonts and the layout that every figure starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Figure = dict[str, Any]
"""A plain Plotly figure: {"data": [traces], "layout": {...}}."""

FONT = "Inter, ui-sans-serif, system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

# Even steps of lightness in OKLCH (0.27 to 0.95), hue from indigo over teal to gold: readable in grey and for
# the colour-blind, and none of it near the magenta that marks what is not finite.
SEQUENCE = (
    "#2c0d5f",
    "#2e287a",
    "#2a4193",
    "#025ea2",
    "#0d7b9a",
    "#15959b",
    "#2caf95",
    "#65c482",
    "#a1d574",
    "#d4e377",
    "#fff19d",
)


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one brightness. lines: for curves, in order of use; severity and confidence: by name."""

    name: str
    paper: str
    ink: str
    muted: str
    grid: str
    axis: str
    missing: str
    zero: str
    nonfinite: str
    lines: tuple[str, ...]
    severity: dict[str, str]
    confidence: dict[str, str]


LIGHT = Theme(
    name="light",
    paper="#ffffff",
    ink="#17202b",
    muted="#566271",
    grid="#e8ecf1",
    axis="#b9c2cd",
    missing="#d3d8de",
    zero="#000000",
    nonfinite="#d6008a",
    lines=("#2160c4", "#c25700", "#007a5e", "#8246b8", "#0085ad", "#947000", "#a8324a", "#5b6673"),
    severity={"info": "#2474b5", "warning": "#c77700", "critical": "#c8202f"},
    confidence={"high": "#007a5e", "medium": "#2160c4", "low": "#8a94a1"},
)

DARK = Theme(
    name="dark",
    paper="#151c25",
    ink="#e7ecf3",
    muted="#9eabba",
    grid="#232d39",
    axis="#435062",
    missing="#4b5561",
    zero="#000000",
    nonfinite="#ff58bd",
    lines=("#7fb2ff", "#ffab5e", "#45cfae", "#c9a0ff", "#63d2f5", "#e3c54a", "#ff8f9f", "#a6b2c0"),
    severity={"info": "#6bb6f5", "warning": "#ffbe4a", "critical": "#ff6b70"},
    confidence={"high": "#45cfae", "medium": "#7fb2ff", "low": "#8793a2"},
)

THEMES = {"light": LIGHT, "dark": DARK}


def theme_named(name: str) -> Theme:
    """Theme by its name; raises ValueError naming those that exist."""
    if name not in THEMES:
        raise ValueError(f"theme must be one of {', '.join(THEMES)}, got {name!r}")
    return THEMES[name]


def colour_scale(colours: tuple[str, ...] = SEQUENCE) -> list[list[Any]]:
    """Plotly colour scale with the colours at even distances."""
    return [[i / (len(colours) - 1), colour] for i, colour in enumerate(colours)]


STEP_TICKS = 8
"""At most so many on an axis of steps."""


def axis(theme: Theme, title: str, **more: Any) -> dict[str, Any]:
    """Axis in the theme's colours; `more` overrides."""
    base = {
        "title": {"text": title, "font": {"size": 12, "color": theme.muted}, "standoff": 8},
        "gridcolor": theme.grid,
        "linecolor": theme.axis,
        "zeroline": False,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": theme.axis,
        "tickfont": {"size": 11, "color": theme.muted},
        "automargin": True,
    }
    return base | more


def step_axis(theme: Theme, title: str, steps: Any, **more: Any) -> dict[str, Any]:
    """Axis of steps, (N,) ascending: whole numbers, each tick another one.

    Few steps have a tick each, by name: a distance between ticks would hold for the range that a reader chooses too,
    and Plotly takes more than a minute to set a thousand of them.
    """
    few = {}
    if len(steps) and steps[-1] - steps[0] < STEP_TICKS - 1:
        few = {"tickmode": "array", "tickvals": [*range(int(steps[0]), int(steps[-1]) + 1)]}
    return axis(theme, title, showgrid=False, tickformat=",~d", nticks=STEP_TICKS, **few, **more)


def base_layout(theme: Theme, title: str, revision: str, **more: Any) -> dict[str, Any]:
    """Layout every figure starts from. revision: while it stays the same, Plotly keeps zoom, pan and legend."""
    base = {
        "title": {"text": title, "font": {"size": 15, "color": theme.ink}, "x": 0, "xref": "paper", "xanchor": "left"},
        "font": {"family": FONT, "size": 12, "color": theme.ink},
        "paper_bgcolor": theme.paper,
        "plot_bgcolor": theme.paper,
        "colorway": list(theme.lines),
        "margin": {"l": 56, "r": 16, "t": 44, "b": 44},
        "hovermode": "x unified",
        "hoverlabel": {
            "bgcolor": theme.paper,
            "bordercolor": theme.axis,
            "font": {"color": theme.ink, "size": 12, "family": FONT},
            "namelength": -1,
        },
        "legend": {
            "orientation": "h",
            "x": 1,
            "xanchor": "right",
            "y": 1.0,
            "yanchor": "bottom",
            "font": {"size": 11, "color": theme.muted},
            "bgcolor": "rgba(0,0,0,0)",
            "itemwidth": 30,
        },
        "dragmode": "zoom",
        "uirevision": revision,
        "shapes": [],
        "meta": {},
    }
    return base | more


def keep_values_of_a_scale(figure: Figure) -> None:
    """Let a zoom of the values end where their scale turns from logarithmic to linear, or back.

    Plotly keeps the ends of an axis as they are, which on the one are powers of ten, on the other the values.
    """
    layout = figure["layout"]
    layout["yaxis"]["uirevision"] = f"{layout['uirevision']} {layout['yaxis'].get('type', 'linear')}"


def decades(values: NDArray[Any]) -> float:
    """Powers of ten between the smallest and the largest positive finite value; 0 where there is none."""
    positive = values[np.isfinite(values) & (values > 0)]
    return float(np.log10(positive.max()) - np.log10(positive.min())) if positive.size else 0.0


VALUE_TICKS = 8
"""At most so many decades on an axis of values have a tick: Plotly takes half a minute to set 600."""

ALIKE = 1e-9
"""Values that differ by less than this share of them are one value."""


def value_ticks(log: bool, values: NDArray[Any]) -> dict[str, Any]:
    """Ticks that stay readable: whole decades over a wide range, also 2 and 5 over a narrower one; none of no value.

    Over a very wide range each nth decade has one, so that there are at most VALUE_TICKS.
    A linear axis of one value alone begins at 0: Plotly shows one unit to either side else, and a rate of 0.001 as 0.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return {"showticklabels": False}
    if not log:
        alone = finite.max() - finite.min() <= ALIKE * abs(finite.max())
        return {"exponentformat": "SI"} | ({"rangemode": "tozero"} if alone else {})
    wide = decades(values)
    each = max(1, int(np.ceil(wide / VALUE_TICKS)))
    return {"exponentformat": "power"} | ({"dtick": each} if wide > 2.5 else {"dtick": "D2"} if wide > 0.7 else {})


def faded(colour: str, opacity: float) -> str:
    """Give '#rrggbb' an opacity between 0 and 1, as a CSS colour."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"
