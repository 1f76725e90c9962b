"""Figures: what a chart of the page shows, as Plotly's own JSON."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from inspect import signature
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from gradspectra_frontend.figures import FIGURES, UnknownFigure, build, figure_needs, series_read
from gradspectra_frontend.other_axes import on_axis
from gradspectra_store import alerts, read, suggestions
from pydantic import BaseModel, Field
from sqlalchemy import Connection
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import dumps
from gradspectra_backend.auth import READ
from gradspectra_backend.axes import Axis, positions
from gradspectra_backend.context import Shared
from gradspectra_backend.forms import JSON, UNCHANGED, unchanged_or
from gradspectra_backend.layer_choice import DEPTHS, LayerChoice, chosen_layers
from gradspectra_backend.memory import large_answer
from gradspectra_backend.patterns import MAX_PATTERN
from gradspectra_backend.problems import Problem
from gradspectra_backend.routes.fields import LARGEST_STEP, RunId, names_of
from gradspectra_backend.routes.runs import run_object

router = APIRouter(prefix="/api/v1", tags=["figures"])

MOST_ALERTS = 1000
MOST_CELLS = 400_000
"""Layers times columns of a figure, about as many as a screen shows: more would be made, sent and not be seen."""
FEWEST_COLUMNS = 100
WITHOUT_STEPS = ("spectrum", "suggestions", "profile")
"""Figures that have no axis of steps."""


class FigureQuery(BaseModel):
    """What a figure shows and how. Options that a figure does not know are refused by it."""

    theme: Literal["light", "dark"] = "light"
    statistic: str | None = Field(None, max_length=512, description="Statistic or metric, for figures of layers.")
    layer: str | None = Field(None, max_length=20_000, description="Layer, or several separated by commas.")
    pattern: str | None = Field(None, max_length=MAX_PATTERN, description="Layers in whose names this is found.")
    role: str | None = Field(None, max_length=500, description="Layers of these roles, separated by commas.")
    depth: str | None = Field(
        None, max_length=500, json_schema_extra=DEPTHS, description="Layers of these depths, as 0,4-7."
    )
    step: int | None = Field(None, ge=0, le=LARGEST_STEP, description="Step to show, for spectrum and profile.")
    start: int | None = Field(None, ge=0, le=LARGEST_STEP)
    stop: int | None = Field(None, ge=0, le=LARGEST_STEP)
    columns: int = Field(
        1000, ge=1, le=2000, description=f"At most; of very many layers no more than make {MOST_CELLS:,} cells in all."
    )
    attempt: int | None = Field(None, ge=1, le=2**31 - 1, description="This attempt by itself; else all joined.")
    axis: Axis = Field("step", description="What is drawn to the right; start and stop are steps whatever it is.")
    of: Literal["gradient", "weight", "update"] = "gradient"
    order: Literal["depth", "role", "name"] | None = Field(None, description="Order of the layers.")
    smooth: float | None = Field(None, ge=0, le=1e9, description="Time constant of the smoothed line, in entries.")
    scale: Literal["auto", "log", "linear"] | None = Field(None, description="Scale of the value axis.")
    compact: bool | None = Field(None, description="Heatmaps without the z that follows from their customdata.")

    def options(self) -> dict[str, Any]:
        """What goes to the figure itself."""
        names = ("order", "smooth", "scale", "step", "compact")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}

    def choice(self) -> LayerChoice:
        """Which layers it is about."""
        return LayerChoice(self.layer, self.pattern, self.role, self.depth)


@router.get("/runs/{run}/figures/{name}", response_model=schemas.Figure, dependencies=[READ], responses=UNCHANGED)
def read_figure(
    request: Request,
    context: Shared,
    run: RunId,
    name: Annotated[str, Path(max_length=100)],
    query: Annotated[FigureQuery, Query()],
) -> Response:
    """A Plotly figure, {"data", "layout"}; numbers that cannot be drawn are null, and a mark of their own says so."""
    try:
        of_layers = figure_needs(name)[0] == "layers"
    except UnknownFigure as error:
        raise Problem("unknown-figure", str(error)) from None
    _refuse_others(name, query)
    choice = query.choice()
    layers = chosen_layers(context.store, run, choice) if of_layers else None
    with large_answer() if of_layers else nullcontext():
        with context.store.read() as conn:
            run_object(conn, run)
            data, damaged = _data(conn, run, name, query, layers)
            shaded = _alerts(conn, run, query.attempt)
        figure = _built(name, query, choice.shown(data) if of_layers else data, shaded, damaged)
        del data  # three times the size of what is drawn
        if query.axis != "step":
            with context.store.read() as conn:
                place = partial(positions, conn, run_object(conn, run), query.axis, attempt=query.attempt)
                on_axis(figure, query.axis, place)
        return unchanged_or(request, dumps(figure), JSON)


def _refuse_others(name: str, query: FigureQuery) -> None:
    """Raise Problem 422 for what this figure would leave out of account."""
    unknown = {"axis": query.axis != "step" and name in WITHOUT_STEPS}
    unknown |= {"attempt": query.attempt is not None and name == "suggestions"}
    if figure_needs(name)[0] != "layers":
        unknown |= {field: getattr(query, field) is not None for field in ("pattern", "role", "depth")}
    unknown |= dict.fromkeys(sorted(query.options().keys() - signature(FIGURES[name]).parameters.keys()), True)
    for field in (field for field, given in unknown.items() if given):
        raise Problem("bad-request", f"{field}: the figure {name!r} does not take it", field=field)


def _built(name: str, query: FigureQuery, data: Any, shaded: Any, damaged: Sequence[tuple[int, int]]) -> dict[str, Any]:
    options = query.options()
    if name == "layer_curves" and query.layer:
        options["layer"] = names_of(query.layer)
    try:
        return build(name, data=data, alerts=shaded, theme=query.theme, damaged=damaged, **options)
    except ValueError as error:
        raise Problem("bad-request", f"the figure {name!r} cannot be drawn so: {error}") from None


def _data(
    conn: Connection, run: str, name: str, query: FigureQuery, layers: list[str] | None
) -> tuple[Any, Sequence[tuple[int, int]]]:
    """What the figure is built from, and which steps could not be read back where that does not tell it."""
    needs: tuple[Any, ...] = figure_needs(name)
    span = query.start, query.stop
    if needs[0] == "series":
        wanted = series_read(name, read.series_names(conn, run))
        return read.read_series(conn, run, wanted, *span, query.columns, query.attempt), ()
    if needs[0] == "layers":
        statistic = query.statistic or needs[1]
        rows = read.layer_count(conn, run) if layers is None else len(layers)
        columns = min(query.columns, max(MOST_CELLS // max(rows, 1), FEWEST_COLUMNS))
        return read.read_layers(conn, run, statistic, *span, columns, layers, query.attempt), ()
    if needs[0] == "spectra":
        if not query.layer:
            raise Problem("bad-request", "layer: this figure is of one layer, name it", field="layer")
        found = read.find_spectra(conn, run, query.layer, *span, query.columns, query.of, query.attempt)
        return found.spectra, found.damaged
    return suggestions.list_suggestions(conn, run), ()


def _alerts(conn: Connection, run: str, attempt: int | None) -> list[dict[str, Any]]:
    items, _ = alerts.list_alerts(conn, run=run, limit=MOST_ALERTS)
    return [one for one in items if attempt is None or one["attempt"] == attempt]
