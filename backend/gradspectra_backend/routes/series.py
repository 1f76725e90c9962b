"""Curves of a run: scalars and run-level metrics in buckets of steps."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from gradspectra_store import read
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import answer, series_object
from gradspectra_backend.auth import READ
from gradspectra_backend.context import Shared
from gradspectra_backend.routes.fields import Attempt, Columns, RunId, Start, Stop, names_of
from gradspectra_backend.routes.runs import run_object

router = APIRouter(prefix="/api/v1", tags=["numbers"])

Names = Annotated[str | None, Query(max_length=20_000, description="Names separated by commas; all if left out.")]


@router.get("/runs/{run}/series", response_model=schemas.SeriesAnswer, dependencies=[READ])
def read_series(
    context: Shared,
    run: RunId,
    names: Names = None,
    start: Start = None,
    stop: Stop = None,
    columns: Columns = 1000,
    attempt: Attempt = None,
    axis: Literal["step"] = "step",
) -> Response:
    """Scalars and run-level metrics: per bucket mean, minimum, maximum, last value and count of non-finite ones.

    A name that the run does not have is left out of the answer; `available` lists those it has.
    """
    with context.store.read() as conn:
        run_object(conn, run)
        available = read.series_names(conn, run)
        wanted = names_of(names) or available
        series = read.read_series(conn, run, wanted, start, stop, columns, attempt)
    return answer(series_object(series) | {"axis": axis, "available": list(available)})
