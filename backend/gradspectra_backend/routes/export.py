"""Everything that a run recorded, at each step, as a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from gradspectra_store import read
from gradspectra_store.errors import UnknownLayer
from sqlalchemy import Connection
from starlette.responses import StreamingResponse

from gradspectra_backend.auth import READ
from gradspectra_backend.context import Shared
from gradspectra_backend.export_forms import MEDIA_TYPES, Format, written
from gradspectra_backend.export_layers import layers_table
from gradspectra_backend.export_tables import Table, series_table, spans_of, spectra_table
from gradspectra_backend.forms import require_pyarrow
from gradspectra_backend.layer_choice import Choice, LayerChoice
from gradspectra_backend.problems import Problem
from gradspectra_backend.routes.fields import Attempt, RunId, Start, Stop, names_of
from gradspectra_backend.routes.runs import run_object

router = APIRouter(prefix="/api/v1", tags=["numbers"])

What = Literal["series", "layers", "spectra"]
Of = Literal["gradient", "weight", "update"]
CHOSEN_BY: dict[What, set[str]] = {
    "series": {"names"},
    "layers": {"names", "layers", "pattern", "role", "depth"},
    "spectra": {"layers", "pattern", "role", "depth", "of"},
}
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file, sent while it is read.",
        "content": {
            kind.partition(";")[0]: {} if "json" in kind else {"schema": {"type": "string", "format": "binary"}}
            for kind in MEDIA_TYPES.values()
        },
    }
}


@router.get(
    "/runs/{run}/export", response_class=StreamingResponse, dependencies=[READ], responses=_CONTENT, response_model=None
)
def export_run(
    context: Shared,
    run: RunId,
    choice: Choice,
    format: Annotated[Format, Query(description="Parquet and Arrow need pyarrow on the server.")] = "csv",
    what: Annotated[What, Query(description="Scalars and run metrics, layer values, or spectra.")] = "series",
    names: Annotated[
        str | None, Query(max_length=20_000, description="Series or statistics, by commas; all if left out.")
    ] = None,
    of: Annotated[Of | None, Query(description="Spectra of which matrix; all if left out.")] = None,
    start: Start = None,
    stop: Stop = None,
    attempt: Attempt = None,
    skip_damaged: Annotated[bool, Query(description="Leave out what cannot be read back instead of failing.")] = False,
) -> StreamingResponse:
    """Every recorded step of a run, at full resolution, as a table that is sent while it is read.

    Attempts are joined as everywhere: the newest attempt of each step; the column `attempt` says which. An answer
    that breaks off was not whole.
    """
    if format in ("parquet", "arrow"):
        require_pyarrow(f"format={format}")
    _refuse_others(what, choice.given | {name for name, value in (("names", names), ("of", of)) if value is not None})
    with context.store.read() as conn:
        members = run_object(conn, run)
        spans = spans_of(conn, run, attempt, start, stop)
        if what == "series":
            table = series_table(conn, context.store, run, spans, names_of(names), skip_damaged)
        elif what == "layers":
            layers = _layers(conn, run, choice)
            table = layers_table(conn, context.store, run, spans, names_of(names), layers, skip_damaged)
        else:
            table = spectra_table(context.store, run, spans, _layers(conn, run, choice, spectra=True), of, skip_damaged)
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", members["name"]).strip("-.") or "run"
    headers = {"Content-Disposition": f'attachment; filename="{label}-{run}-{what}.{format}"'}
    return StreamingResponse(written(_begun(table), format), media_type=MEDIA_TYPES[format], headers=headers)


def _layers(conn: Connection, run: str, choice: LayerChoice, *, spectra: bool = False) -> list[str]:
    """The layers asked for. spectra: where none are named, only those that have ever had a spectrum."""
    chosen = choice.of(conn, run)
    known = {layer["name"]: layer for layer in read.layer_list(conn, run)}
    if chosen is None:
        return [name for name, layer in known.items() if layer["spectra"] or not spectra]
    for name in chosen:
        if name not in known:
            raise UnknownLayer(name)
    return list(dict.fromkeys(chosen))


def _refuse_others(what: What, given: set[str]) -> None:
    """Raise Problem 422 for what an export of this kind would leave out of account."""
    for field in sorted(given - CHOSEN_BY[what]):
        raise Problem("bad-request", f"{field}: an export of {what} is not chosen by {field}", field=field)


def _begun(table: Table) -> Table:
    """The same with its first piece read, so that what is wrong is still answered by a problem document."""
    pieces: Iterator[Any] = iter(table.pieces)
    first = next(pieces, None)
    return replace(table, pieces=() if first is None else chain([first], pieces))
