"""Figures: what a chart of the page shows, as Plotly's own JSON."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from gradspectra_frontend.figures import UnknownFigure, build, figure_needs, series_read
from gradspectra_store import alerts, read, suggestions
from pydantic import BaseModel, Field
from sqlalchemy import Connection
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import answer
from gradspectra_backend.auth import READ
from gradspectra_backend.context import Shared
from gradspectra_backend.memory import large_answer
from gradspectra_backend.problems import Problem
from gradspectra_backend.routes.fields import LARGEST_STEP, RunId, names_of
from gradspectra_backend.routes.runs import run_object

router = APIRouter(prefix="/api/v1", tags=["figures"])

MOST_ALERTS = 1000
MOST_CELLS = 400_000
"""Layers times columns of a figure, about as many as a screen shows: more would be made, sent and not be seen."""
FEWEST_COLUMNS = 100


class FigureQuery(BaseModel):
    """What a figure shows and how. Options that a figure does not know are refused by it."""

    theme: Literal["light", "dark"] = "light"
    statistic: str | None = Field(None, max_length=512, description="Statistic or metric, for figures of layers.")
    layer: str | None = Field(None, max_length=20_000, description="Layer, or several separated by commas.")
    step: int | None = Field(None, ge=0, le=LARGEST_STEP, description="Step to show, for the spectrum.")
    start: int | None = Field(None, ge=0, le=LARGEST_STEP)
    stop: int | None = Field(None, ge=0, le=LARGEST_STEP)
    columns: int = Field(
        1000, ge=1, le=2000, description=f"At most; of very many layers no more than make {MOST_CELLS:,} cells in all."
    )
    of: Literal["gradient", "weight", "update"] = "gradient"
    order: Literal["depth", "role", "name"] | None = Field(None, description="Order of the layers.")
    smooth: float | None = Field(None, ge=0, le=1e9, description="Time constant of the smoothed line, in entries.")
    scale: Literal["auto", "log", "linear"] | None = Field(None, description="Scale of the value axis.")

    def options(self) -> dict[str, Any]:
        """What goes to the figure itself."""
        given = {"order": self.order, "smooth": self.smooth, "scale": self.scale, "step": self.step}
        return {name: value for name, value in given.items() if value is not None}


@router.get("/runs/{run}/figures/{name}", response_model=schemas.Figure, dependencies=[READ])
def read_figure(
    context: Shared, run: RunId, name: Annotated[str, Path(max_length=100)], query: Annotated[FigureQuery, Query()]
) -> Response:
    """A Plotly figure, {"data", "layout"}; numbers that cannot be drawn are null, and a mark of their own says so."""
    try:
        needs = figure_needs(name)
    except UnknownFigure as error:
        raise Problem("unknown-figure", str(error)) from None
    options = query.options()
    if name == "layer_curves" and query.layer:
        options["layer"] = names_of(query.layer)
    with large_answer() if needs[0] == "layers" else nullcontext():
        with context.store.read() as conn:
            run_object(conn, run)
            data, damaged = _data(conn, run, name, query)
            shaded = _alerts(conn, run)
        try:
            figure = build(name, data=data, alerts=shaded, theme=query.theme, damaged=damaged, **options)
        except (TypeError, ValueError) as error:
            raise Problem("bad-request", f"the figure {name!r} cannot be drawn so: {error}") from None
        del data  # three times the size of what is drawn
        return answer(figure)


def _data(conn: Connection, run: str, name: str, query: FigureQuery) -> tuple[Any, Sequence[tuple[int, int]]]:
    """What the figure is built from, and which steps could not be read back where that does not tell it."""
    needs: tuple[Any, ...] = figure_needs(name)
    if needs[0] == "series":
        wanted = series_read(name, read.series_names(conn, run))
        return read.read_series(conn, run, wanted, query.start, query.stop, query.columns), ()
    if needs[0] == "layers":
        statistic = query.statistic or needs[1]
        layers = names_of(query.layer) or None
        rows = len(layers) if layers else read.layer_count(conn, run)
        columns = min(query.columns, max(MOST_CELLS // max(rows, 1), FEWEST_COLUMNS))
        return read.read_layers(conn, run, statistic, query.start, query.stop, columns, layers), ()
    if needs[0] == "spectra":
        if not query.layer:
            raise Problem("bad-request", "layer: this figure is of one layer, name it", field="layer")
        found = read.find_spectra(conn, run, query.layer, query.start, query.stop, query.columns, query.of)
        return found.spectra, found.damaged
    return suggestions.list_suggestions(conn, run), ()


def _alerts(conn: Connection, run: str) -> list[dict[str, Any]]:
    items, _ = alerts.list_alerts(conn, run=run, limit=MOST_ALERTS)
    return list(items)
