"""Where steps lie on another axis: tokens so far, seconds of training so far, or the fraction of the run."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from gradspectra_core.records import Float64, Int64
from gradspectra_store import read
from sqlalchemy import Connection

from gradspectra_backend.problems import Problem

Axis = Literal["step", "tokens", "time", "fraction"]

SUMMED = {"tokens": "tokens", "time": "step_seconds"}
"""Axis → the series whose sum over steps it is; without step_seconds, time is that of the job's clock."""
COLUMNS = 4096


def positions(
    conn: Connection, run: dict[str, Any], axis: Axis, steps: Int64, attempt: int | None = None
) -> Float64 | Int64:
    """Return where steps (N,), increasing, lie on an axis of a run: (N,), never decreasing.

    step: the steps themselves. fraction: of `total_steps`, else of the last step. tokens, time: summed from the
    first step up to and with each; steps that were not recorded count as the recorded one before them. Raises Problem
    422 where the run has not recorded what the axis is made of. time of a run without step_seconds: since its first
    record, as `read.elapsed` says.
    """
    if axis == "step":
        return steps
    if axis == "fraction":
        return np.asarray(steps / max(run["total_steps"] or run["last_step"], 1), np.float64)
    name = SUMMED[axis]
    if name not in read.series_names(conn, run["id"]):
        if axis == "time":
            return read.elapsed(conn, run["id"], steps, attempt)
        raise Problem(
            "bad-request",
            f"axis: {axis} is summed from the series {name!r}, which this run has not recorded",
            field="axis",
            remedy=f"Ask for axis=step, or log {name!r} while training.",
        )
    return _sums(conn, run["id"], name, steps, attempt) if len(steps) else steps.astype(np.float64)


def _sums(conn: Connection, run: str, name: str, steps: Int64, attempt: int | None) -> Float64:
    first, stop = int(steps[0]), int(steps[-1]) + 1
    _, earlier = _parts(conn, run, name, 0, first, attempt)
    starts, parts = _parts(conn, run, name, first, stop, attempt)
    base = float(earlier.sum())
    if not len(starts):
        return np.full(len(steps), base)
    ends = np.append(starts[1:], stop) - 1
    return np.interp(steps, [starts[0] - 1, *ends], base + np.cumsum([0.0, *parts]))


def _parts(conn: Connection, run: str, name: str, start: int, stop: int, attempt: int | None) -> tuple[Int64, Float64]:
    """Return first steps of buckets that follow one another up to `stop`, and the series' sum over each."""
    series = read.read_series(conn, run, [name], start, stop, COLUMNS, attempt)
    values = series.series[name]
    known = values.present & np.isfinite(values.mean)
    starts = np.asarray(series.x, np.int64)[known]
    return starts, values.mean[known] * np.diff(np.append(starts, stop))
