"""Runs: list, read, change and delete them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from gradspectra_store import run_views
from gradspectra_store import runs as stored
from gradspectra_store.ending import end_run
from gradspectra_store.errors import UnknownRun
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import answer, plain
from gradspectra_backend.auth import ADMIN, READ
from gradspectra_backend.context import Shared
from gradspectra_backend.live import DELETED
from gradspectra_backend.routes.fields import Cursor, Limit, RunId

router = APIRouter(prefix="/api/v1", tags=["runs"])

ORDERS = Literal[
    "created_at",
    "-created_at",
    "updated_at",
    "-updated_at",
    "name",
    "-name",
    "last_step",
    "-last_step",
    "open_alerts",
    "-open_alerts",
]


class RunChange(BaseModel):
    """What of a run may be changed; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, description="New name.")
    notes: str | None = Field(None, description="New notes, plain text.")
    tags: list[str] | None = Field(None, description="New tags, in place of all there are.")
    total_steps: int | None = Field(None, description="Steps the run is to take; null takes the figure away.")
    pinned: bool | None = Field(None, description="Whether retention leaves the run alone.")
    state: Literal["finished", "failed"] | None = Field(
        None, description="How the run ended, where its job is gone and never said so; stops no job."
    )
    stop_at_step: int | None = Field(
        None,
        description="Ask the job to stop at this step, which it does if it was started with `stop_on`; null: go on.",
    )


def run_object(conn: Connection, run: str) -> dict[str, Any]:
    """The `run` object of the interface; raises UnknownRun."""
    found = run_views.get_run(conn, run)
    if found is None:
        raise UnknownRun(run)
    return found


@router.get("/projects", response_model=schemas.Page[schemas.Project], dependencies=[READ])
def list_projects(context: Shared) -> Response:
    """Projects with their numbers of runs."""
    with context.store.read() as conn:
        items = run_views.list_projects(conn)
    return answer({"items": items, "next": None})


@router.get("/runs", response_model=schemas.Page[schemas.Run], dependencies=[READ])
def list_runs(
    context: Shared,
    project: Annotated[str | None, Query(max_length=512)] = None,
    state: Literal["running", "finished", "failed", "lost"] | None = None,
    health: Literal["ok", "warning", "critical"] | None = None,
    tag: Annotated[str | None, Query(max_length=512)] = None,
    search: Annotated[str | None, Query(max_length=512, description="Part of a name, a project or the notes.")] = None,
    order: Annotated[ORDERS, Query(description="A leading minus turns the order around.")] = "-created_at",
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Response:
    """Runs that fit all filters, a page at a time."""
    with context.store.read() as conn:
        items, following = run_views.list_runs(
            conn,
            project=project,
            state=state,
            health=health,
            tag=tag,
            search=search,
            order=order,
            cursor=cursor,
            limit=limit,
        )
    return answer({"items": plain(items), "next": following})


@router.get("/runs/{run}", response_model=schemas.Run, dependencies=[READ])
def read_run(context: Shared, run: RunId) -> Response:
    """One run."""
    with context.store.read() as conn:
        return answer(plain(run_object(conn, run)))


@router.patch("/runs/{run}", response_model=schemas.Run, dependencies=[ADMIN])
def change_run(context: Shared, run: RunId, change: RunChange) -> Response:
    """Change name, notes, tags or the number of steps, pin it, ask the job to stop, or say how the run ended."""
    fields = change.model_dump(exclude_unset=True)
    ends, state = "state" in fields, fields.pop("state", None)
    with context.store.write() as conn:
        stored.update_run(conn, run, **fields)
        if ends:
            end_run(conn, run, state, context.clock())
        changed = run_object(conn, run)
    if ends:
        context.dispatcher.request(run)
    context.announce({"type": "run", "run": run, "state": changed["state"], "changed_at": context.clock()})
    return answer(plain(changed))


@router.delete("/runs/{run}", status_code=204, dependencies=[ADMIN])
def delete_run(context: Shared, run: RunId) -> None:
    """Delete a run with everything it recorded and all that was derived from it."""
    with context.store.write() as conn:
        stored.delete_run(conn, run)
    context.announce({"type": "run", "run": run, "state": DELETED})


@router.get("/runs/{run}/attempts", response_model=schemas.Page[schemas.Attempt], dependencies=[READ])
def list_attempts(context: Shared, run: RunId) -> Response:
    """Attempts of a run, oldest first: each hides what older ones have from its first step on."""
    with context.store.read() as conn:
        run_object(conn, run)
        items = run_views.list_attempts(conn, run)
    return answer({"items": plain(items), "next": None})


@router.get("/runs/{run}/gaps", response_model=schemas.Page[schemas.Gap], dependencies=[READ])
def list_gaps(context: Shared, run: RunId) -> Response:
    """Ranges of steps of which something was dropped before it was sent, and why."""
    with context.store.read() as conn:
        run_object(conn, run)
        items = run_views.list_gaps(conn, run)
    return answer({"items": items, "next": None})
