"""Curves of a run: scalars and run-level metrics in buckets of steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request
from gradspectra_store import read
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.auth import READ
from gradspectra_backend.axes import Axis, positions
from gradspectra_backend.context import Shared
from gradspectra_backend.forms import RESPONSES, answer_series
from gradspectra_backend.routes.fields import Attempt, Columns, RunId, Start, Stop, names_of
from gradspectra_backend.routes.runs import run_object

router = APIRouter(prefix="/api/v1", tags=["numbers"])

AxisOf = Annotated[Axis, Query(description="What `x` counts; start and stop are steps whatever the axis.")]
Names = Annotated[str | None, Query(max_length=20_000, description="Names separated by commas; all if left out.")]


@router.get("/runs/{run}/series", response_model=schemas.SeriesAnswer, dependencies=[READ], responses=RESPONSES)
def read_series(
    request: Request,
    context: Shared,
    run: RunId,
    names: Names = None,
    start: Start = None,
    stop: Stop = None,
    columns: Columns = 1000,
    attempt: Attempt = None,
    axis: AxisOf = "step",
) -> Response:
    """Scalars and run-level metrics: per bucket mean, minimum, maximum, last value and count of non-finite ones.

    A name that the run does not have is left out of the answer; `available` lists those it has.
    """
    with context.store.read() as conn:
        members = run_object(conn, run)
        available = read.series_names(conn, run)
        wanted = names_of(names) or available
        series = read.read_series(conn, run, wanted, start, stop, columns, attempt)
        steps = np.asarray(series.x, np.int64)
        placed = replace(series, axis=axis, x=positions(conn, members, axis, steps, attempt))
    return answer_series(request, placed, steps, list(available))
