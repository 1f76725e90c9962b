"""Figures of several runs: one series of each laid over the others, and what a layer statistic of two differs by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gradspectra_core.views import Series

from gradspectra_frontend.damage import damage_note
from gradspectra_frontend.marks import Curve, curve_traces, plain
from gradspectra_frontend.other_axes import on_axis
from gradspectra_frontend.scalar_figures import SMOOTH_SHARE, finished, log_axis
from gradspectra_frontend.theme import Figure, Theme, axis, base_layout, keep_values_of_a_scale, step_axis

DASHES = ("solid", "dash", "dot")
"""Lines of one colour differ by these: colours and dashes together tell 24 runs apart."""

LONGEST_LABEL = 48

TITLES = {
    "loss": "Loss",
    "eval_loss": "Evaluation loss",
    "grad_norm": "Gradient norm before clipping",
    "noise_scale": "Gradient noise scale",
    "learning_rate": "Learning rate",
    "step_seconds": "Seconds per step",
}


@dataclass(frozen=True, slots=True)
class Compared:
    """One run of a comparison. series: over steps; x: where these lie on the axis drawn, None if that is not known."""

    run: str
    name: str
    series: Series
    x: Any = None


def curves(
    runs: Sequence[Compared],
    series: str,
    theme: Theme,
    *,
    along: str = "step",
    smooth: float | None = None,
    scale: str = "auto",
) -> Figure:
    """One series of several runs, a line for each, along one axis ("step", "tokens", "time" or "fraction").

    smooth: time constant in entries of the line drawn over the raw one; None takes 1% of the entries, 0 none. Runs
    without the series or without the axis are named in `layout.meta.note`. `layout.meta.runs` tells, in the order
    given, each run's label, colour and dash, and whether it is drawn. Raises ValueError for a bad option.
    """
    drawn = [one for one in runs if series in one.series.series and (along == "step" or one.x is not None)]
    looks = _looks(runs, theme, {one.run for one in drawn})
    lines = {one.run: Curve.of(looks[one.run]["label"], one.series.x, one.series.series[series]) for one in drawn}
    log = log_axis(list(lines.values()), scale)
    title = TITLES.get(series, plain(series.replace("_", " ")))
    layout = base_layout(theme, title, f"curves {series} {along}")
    last = max((int(one.series.x[-1]) for one in drawn if len(one.series.x)), default=0)
    steps = np.unique(np.concatenate([np.empty(0, np.int64), *(line.x for line in lines.values())]))
    layout["xaxis"] = step_axis(theme, "step", steps, hoverformat=",d")
    layout["yaxis"] = axis(theme, title.lower(), type="log" if log else "linear", nticks=6)
    note = _left_out([looks[one.run]["label"] for one in runs if one not in drawn], title, along, len(runs))
    layout["meta"] = {"figure": "curves", "title": title, "note": note, "last_step": last, "runs": list(looks.values())}
    figure: Figure = {"data": [], "layout": layout}
    for one in drawn:
        part = _lines(one.run, lines[one.run], looks[one.run], theme, log=log, smooth=smooth)
        figure["data"] += _moved(part, layout, one, along)
    finished(figure)
    keep_values_of_a_scale(figure)
    layout["showlegend"] = True
    _tell_damage(figure, runs, looks)
    return figure


def labels(names: Sequence[str], runs: Sequence[str]) -> list[str]:
    """Names of runs as a legend shows them: long ones without their middle, equal ones with the run's identity."""
    half = LONGEST_LABEL // 2
    short = [name if len(name) <= LONGEST_LABEL else f"{name[:half]}…{name[1 - half :]}" for name in names]
    count = Counter(short)
    return [plain(f"{name} ({run})" if count[name] > 1 else name) for name, run in zip(short, runs, strict=True)]


def _looks(runs: Sequence[Compared], theme: Theme, drawn: set[str]) -> dict[str, dict[str, Any]]:
    shown = labels([one.name for one in runs], [one.run for one in runs])
    return {
        one.run: {
            "run": one.run,
            "label": label,
            "colour": theme.lines[i % len(theme.lines)],
            "dash": DASHES[i // len(theme.lines) % len(DASHES)],
            "drawn": one.run in drawn,
        }
        for i, (one, label) in enumerate(zip(runs, shown, strict=True))
    }


def _lines(
    run: str, curve: Curve, look: dict[str, Any], theme: Theme, *, log: bool, smooth: float | None
) -> list[dict[str, Any]]:
    """Traces of one run, with one entry in the legend; the raw line alone says its values."""
    window = SMOOTH_SHARE * len(curve.x) if smooth is None else smooth
    window = window if window >= 1 else 0.0
    traces = curve_traces(curve, look["colour"], theme, log=log, smooth=window, dash=look["dash"])
    named = False
    for trace in traces:
        trace["legendgroup"] = run
        if trace.get("meta") == "smoothed":
            trace["line"]["dash"] = look["dash"]
            trace["hoverinfo"] = "skip"
            trace.pop("hovertemplate")
        line = trace.get("yaxis") != "y2" and "fill" not in trace
        trace["showlegend"] = line and not named
        named = named or line
    return traces


def _moved(traces: list[dict[str, Any]], layout: dict[str, Any], one: Compared, along: str) -> list[dict[str, Any]]:
    """Put the traces of one run where its steps lie on the axis; the layout is told of the axis."""
    if along != "step":
        part = {"data": traces, "layout": layout | {"shapes": []}}
        on_axis(part, along, lambda steps: np.interp(steps, one.series.x, one.x))
    return traces


def _left_out(names: list[str], title: str, along: str, count: int) -> str:
    if not names or (len(names) == count and along == "step"):
        return ""  # nothing is drawn, and says so by itself
    of = f"no {title.lower()}" + ("" if along == "step" else f", or no {along}")
    return f"{of}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tell_damage(figure: Figure, runs: Sequence[Compared], looks: dict[str, dict[str, Any]]) -> None:
    notes = [f"{looks[one.run]['label']}: {damage_note(one.series.damaged)}" for one in runs if one.series.damaged]
    if notes:
        figure["layout"]["meta"]["damaged"] = "; ".join(notes)
