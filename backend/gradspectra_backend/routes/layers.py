"""Layers of a run: which there are, their statistics and metrics, their spectra, and what is suggested for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Path, Query, Request
from gradspectra_store import read, suggestions
from starlette.responses import Response

from gradspectra_backend import retention_schemas, schemas
from gradspectra_backend.answers import answer, dumps, plain, spectrum_object
from gradspectra_backend.auth import READ
from gradspectra_backend.axes import positions
from gradspectra_backend.context import Shared
from gradspectra_backend.forms import JSON, RESPONSES, answer_layers, unchanged_or
from gradspectra_backend.layer_choice import Choice, chosen_layers
from gradspectra_backend.memory import large_answer
from gradspectra_backend.routes.fields import Attempt, Columns, RunId, Start, Stop
from gradspectra_backend.routes.runs import run_object
from gradspectra_backend.routes.series import AxisOf

router = APIRouter(prefix="/api/v1", tags=["numbers"])

LayerName = Annotated[str, Query(max_length=512, description="Full name of the layer.")]
Of = Annotated[Literal["gradient", "weight", "update"], Query(description="Of which matrix.")]


@router.get("/runs/{run}/layers", response_model=schemas.Page[schemas.Layer], dependencies=[READ])
def list_layers(context: Shared, run: RunId) -> Response:
    """Layers with role, depth, shape, since which step they are there, and whether they have spectra."""
    with context.store.read() as conn:
        run_object(conn, run)
        items = read.layer_list(conn, run)
    return answer({"items": items, "next": None})


@router.get(
    "/runs/{run}/layers/{statistic:path}", response_model=schemas.LayerAnswer, dependencies=[READ], responses=RESPONSES
)
def read_layers(
    request: Request,
    context: Shared,
    run: RunId,
    statistic: Annotated[str, Path(max_length=512, description="A statistic or a metric, such as grad_norm.")],
    choice: Choice,
    start: Start = None,
    stop: Stop = None,
    columns: Columns = 1000,
    attempt: Attempt = None,
    axis: AxisOf = "step",
) -> Response:
    """One statistic or metric of all layers: per layer and bucket mean, minimum, maximum, and count of non-finite."""
    names = chosen_layers(context.store, run, choice)
    with large_answer():
        with context.store.read() as conn:
            members = run_object(conn, run)
            values = choice.shown(read.read_layers(conn, run, statistic, start, stop, columns, names, attempt))
            steps = np.asarray(values.x, np.int64)
            placed = replace(values, axis=axis, x=positions(conn, members, axis, steps, attempt))
        return answer_layers(request, placed, steps)


@router.get("/runs/{run}/spectra", response_model=retention_schemas.SpectraPage, dependencies=[READ])
def read_spectra(
    request: Request,
    context: Shared,
    run: RunId,
    layer: LayerName,
    start: Start = None,
    stop: Stop = None,
    columns: Columns = 100,
    of: Of = "gradient",
    attempt: Attempt = None,
    axis: AxisOf = "step",
) -> Response:
    """Spectra of one layer, at most `columns` of them, evenly spread over the steps; `x` says where they lie."""
    with context.store.read() as conn:
        members = run_object(conn, run)
        found = read.find_spectra(conn, run, layer, start, stop, columns, of, attempt)
        left = read.spectra_left(conn, run, start, stop, attempt)
        x = positions(conn, members, axis, np.array([one.step for one in found.spectra], np.int64), attempt)
    items = [spectrum_object(one) for one in found.spectra]
    body = {"items": items, "next": None, "axis": axis, "x": x, "damaged": found.damaged, "retired": left}
    return unchanged_or(request, dumps(body), JSON)


@router.get("/runs/{run}/suggestions", response_model=schemas.Page[schemas.Suggestion], dependencies=[READ])
def list_suggestions(context: Shared, run: RunId) -> Response:
    """What could be changed, with value, interval, evidence and confidence; nothing is ever applied."""
    with context.store.read() as conn:
        run_object(conn, run)
        items = suggestions.list_suggestions(conn, run)
    return answer({"items": plain(items), "next": None})
