"""Figures of several runs: a series of each, what two of them differ by layer by layer, and a sweep of rates."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request
from gradspectra_frontend.comparison_figures import Compared, curves, labels
from gradspectra_frontend.difference_figures import difference
from gradspectra_frontend.sweep_figure import Trial, sweep
from gradspectra_frontend.theme import theme_named
from gradspectra_store import read
from sqlalchemy import Connection
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import dumps
from gradspectra_backend.auth import READ
from gradspectra_backend.axes import Axis, positions
from gradspectra_backend.context import Shared
from gradspectra_backend.forms import JSON, UNCHANGED, unchanged_or
from gradspectra_backend.memory import large_answer
from gradspectra_backend.problems import Problem
from gradspectra_backend.routes.fields import Start, Stop, names_of
from gradspectra_backend.routes.figures import FEWEST_COLUMNS, MOST_CELLS
from gradspectra_backend.routes.runs import run_object

router = APIRouter(prefix="/api/v1/comparisons", tags=["figures"])

MOST_RUNS = 20
MOST_POINTS = 12_000
"""Runs times columns of curves: more would be drawn and not be seen."""
ENDS = 100
"""A sweep's final loss is the mean of the last two of so many buckets."""

Columns = Annotated[int, Query(ge=1, le=2000, description="At most; of many runs or layers fewer.")]
Brightness = Annotated[Literal["light", "dark"], Query()]


def _runs(
    runs: Annotated[str, Query(max_length=2000, description=f"Identities, separated by commas; at most {MOST_RUNS}.")],
) -> list[str]:
    """The runs asked for, each once. Raises Problem 422 for none or too many."""
    found = list(dict.fromkeys(names_of(runs)))
    if not 1 <= len(found) <= MOST_RUNS:
        raise Problem("bad-request", f"runs: from 1 to {MOST_RUNS} can be compared, got {len(found)}", field="runs")
    return found


Runs = Annotated[list[str], Depends(_runs)]


@router.get("/curves", response_model=schemas.Figure, dependencies=[READ], responses=UNCHANGED)
def compare_curves(
    request: Request,
    context: Shared,
    runs: Runs,
    series: Annotated[str, Query(max_length=512, description="Scalar or run-level metric.")] = "loss",
    axis: Axis = "step",
    start: Start = None,
    stop: Stop = None,
    columns: Columns = 1000,
    smooth: Annotated[float | None, Query(ge=0, le=1e9, description="Time constant, in entries.")] = None,
    scale: Literal["auto", "log", "linear"] = "auto",
    theme: Brightness = "light",
) -> Response:
    """One series of several runs as a Plotly figure, along steps, tokens, time or the fraction of each run."""
    fewer = min(columns, max(MOST_POINTS // len(runs), FEWEST_COLUMNS))
    with context.store.read() as conn:
        compared = [_compared(conn, run, series, axis, (start, stop, fewer)) for run in runs]
    figure = curves(compared, series, theme_named(theme), along=axis, smooth=smooth, scale=scale)
    return unchanged_or(request, dumps(figure), JSON)


@router.get("/difference", response_model=schemas.Figure, dependencies=[READ], responses=UNCHANGED)
def compare_difference(
    request: Request,
    context: Shared,
    runs: Runs,
    statistic: Annotated[str, Query(max_length=512, description="Statistic or metric without a sign.")] = "grad_norm",
    start: Start = None,
    stop: Stop = None,
    columns: Columns = 1000,
    order: Literal["depth", "role", "name"] = "depth",
    theme: Brightness = "light",
) -> Response:
    """(a − b) / b of the first run and the second, layer × step, as a Plotly figure of the layers that both have."""
    if len(runs) != 2:
        raise Problem("bad-request", f"runs: a difference is of two runs, got {len(runs)}", field="runs")
    with large_answer():
        with context.store.read() as conn:
            end = min(run_object(conn, run)["last_step"] for run in runs) + 1
            if start is None or start < end:  # else one of them has nothing there, and nothing is drawn
                stop = end if stop is None else min(stop, end)
            rows = max(read.layer_count(conn, run) for run in runs)
            fewer = min(columns, max(MOST_CELLS // max(rows, 1), FEWEST_COLUMNS))
            first, other = (read.read_layers(conn, run, statistic, start, stop, fewer) for run in runs)
        try:
            figure = difference(first, other, theme_named(theme), order=order)
        except ValueError as error:
            raise Problem("bad-request", f"statistic: {error}", field="statistic") from None
        return unchanged_or(request, dumps(figure), JSON)


@router.get("/sweep", response_model=schemas.Figure, dependencies=[READ], responses=UNCHANGED)
def compare_sweep(request: Request, context: Shared, runs: Runs, theme: Brightness = "light") -> Response:
    """Final loss against the largest learning rate of each run, and the sensitivity to it, as a Plotly figure."""
    with context.store.read() as conn:
        shown = labels([run_object(conn, run)["name"] for run in runs], runs)
        trials = [_trial(conn, run, label) for run, label in zip(runs, shown, strict=True)]
    return unchanged_or(request, dumps(sweep(trials, theme_named(theme))), JSON)


def _compared(conn: Connection, run: str, name: str, axis: Axis, span: tuple[int | None, int | None, int]) -> Compared:
    members = run_object(conn, run)
    found = read.read_series(conn, run, [name], *span)
    try:
        placed = positions(conn, members, axis, np.asarray(found.x, np.int64))
    except Problem:
        placed = None  # this run has not recorded what the axis is made of
    return Compared(run, members["name"], found, placed)


def _trial(conn: Connection, run: str, label: str) -> Trial:
    found = read.read_series(conn, run, ["learning_rate", "loss"], columns=ENDS)
    rates = found.series.get("learning_rate")
    rate = float(rates.max[rates.present].max()) if rates is not None and rates.present.any() else float("nan")
    if "loss" not in found.series or not found.series["loss"].present.any():
        return Trial(label, rate, float("nan"), float("nan"))
    losses = found.series["loss"]
    here = np.flatnonzero(losses.present)
    begun = read.read_series(conn, run, ["loss"], int(found.x[here[0]]), int(found.x[here[0]]) + 1).series["loss"]
    ends = here[-2:]
    broken = bool(losses.nonfinite[ends].any())
    final = float("nan") if broken else float(losses.mean[ends].mean())
    return Trial(label, rate, _first(begun), final)


def _first(buckets: Any) -> float:
    here = np.flatnonzero(buckets.present)
    return float(buckets.mean[here[0]]) if len(here) else float("nan")
