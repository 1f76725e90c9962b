"""Mutes: rules that somebody does not want to hear of from one run."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from gradspectra_store import mutes as stored
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import answer
from gradspectra_backend.auth import ADMIN, READ
from gradspectra_backend.context import Context, Shared
from gradspectra_backend.routes.fields import RunId
from gradspectra_backend.routes.runs import run_object

router = APIRouter(prefix="/api/v1", tags=["alerts"])

Rule = Annotated[str, Path(max_length=64, description="Name of the rule.")]


@router.get("/mutes", response_model=schemas.Page[schemas.Mute], dependencies=[READ])
def list_mutes(
    context: Shared, run: Annotated[str | None, Query(max_length=64, description="Only of this run.")] = None
) -> Response:
    """Rules that are muted for runs, oldest first."""
    with context.store.read() as conn:
        if run is not None:
            run_object(conn, run)
        items = stored.list_mutes(conn, run)
    return answer({"items": items, "next": None})


@router.put("/mutes/{run}/{rule}", response_model=schemas.Mute, dependencies=[ADMIN])
def mute(context: Shared, run: RunId, rule: Rule) -> Response:
    """Mute a rule for a run: its alerts are kept and marked, delivered to nobody, and left out of the run's health."""
    with context.store.write() as conn:
        row, changed = stored.mute_rule(conn, run, rule, context.clock())
    _announce(context, changed)
    return answer(row)


@router.delete("/mutes/{run}/{rule}", status_code=204, dependencies=[ADMIN])
def unmute(context: Shared, run: RunId, rule: Rule) -> None:
    """Hear of a rule again; what opened while it was muted is not delivered afterwards."""
    with context.store.write() as conn:
        changed = stored.unmute_rule(conn, run, rule)
    _announce(context, changed)


def _announce(context: Context, changed: list[dict[str, Any]]) -> None:
    for alert in changed:
        context.announce({"type": "alert", "run": alert["run"], "alert": alert})
