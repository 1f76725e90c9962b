"""A sweep: learning rates of several runs against the losses they came to, and the sensitivity to the rate."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradspectra_frontend.theme import Figure, Theme, axis, base_layout, value_ticks


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a sweep. rate: the largest learning rate it had; initial, final: loss at its beginning and its end.

    Each is NaN where it is not known. label: as `comparison_figures.labels` makes it.
    """

    label: str
    rate: float
    initial: float
    final: float

    @property
    def reached(self) -> float:
        """The final loss, but no more than the initial one, also of a run that diverged."""
        return min(self.final, self.initial) if math.isfinite(self.final) else self.initial


def usable(trial: Trial) -> bool:
    """Whether a run has what a sweep needs: a rate above 0 and the loss that it began with."""
    return math.isfinite(trial.rate) and trial.rate > 0 and math.isfinite(trial.reached)


def sensitivity(trials: Sequence[Trial]) -> float:
    """Learning-rate sensitivity: mean over the rates η of min(final loss, initial loss), less the least of them.

    Runs of one rate count as one, by their mean. NaN for less than two rates. Source: Wortsman et al. 2023, small-scale
    proxies for large-scale transformer training instabilities.
    """
    by_rate = defaultdict(list)
    for trial in trials:
        by_rate[trial.rate].append(trial.reached)
    losses = [sum(some) / len(some) for some in by_rate.values()]
    return sum(losses) / len(losses) - min(losses) if len(losses) > 1 else math.nan


def sweep(trials: Sequence[Trial], theme: Theme) -> Figure:
    """Final loss against the largest learning rate of each run, with `layout.meta.sensitivity` (None if not known).

    A run that ended above its initial loss, or not finite, stands at its initial loss with a cross. Runs that are not
    `usable` are left out.
    """
    shown = sorted(filter(usable, trials), key=lambda trial: trial.rate)
    value = sensitivity(shown)
    title = "Final loss by learning rate"
    layout = base_layout(theme, title, "sweep", hovermode="closest")
    rates = np.array([trial.rate for trial in shown])
    layout["xaxis"] = axis(theme, "largest learning rate", type="log", showgrid=False, **value_ticks(True, rates))
    layout["yaxis"] = axis(theme, "final loss", nticks=6)
    note = "" if math.isnan(value) else f"learning-rate sensitivity {value:.4g}"
    known = None if math.isnan(value) else value
    layout["meta"] = {"figure": "sweep", "title": title, "note": note, "last_step": 0, "sensitivity": known}
    layout["showlegend"] = False
    return {"data": [_points(shown, theme)] if shown else [], "layout": layout}


def _points(shown: Sequence[Trial], theme: Theme) -> dict[str, Any]:
    lost = [not trial.final <= trial.initial for trial in shown]
    return {
        "type": "scatter",
        "name": "runs",
        "x": [trial.rate for trial in shown],
        "y": [trial.reached for trial in shown],
        "mode": "lines+markers",
        "line": {"color": theme.axis, "width": 1.2},
        "marker": {
            "size": 11,
            "symbol": ["x" if diverged else "circle" for diverged in lost],
            "color": [theme.nonfinite if diverged else theme.lines[0] for diverged in lost],
        },
        "text": [
            f"{trial.label}<br>final loss {trial.final:.5g}" + (f", at first {trial.initial:.5g}" if diverged else "")
            for trial, diverged in zip(shown, lost, strict=True)
        ],
        "hovertemplate": "%{text}<br>learning rate %{x:.4~g}<extra></extra>",
    }
