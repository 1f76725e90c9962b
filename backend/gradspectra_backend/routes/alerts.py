"""Alerts and incidents: of one run, and the inbox over all; acknowledge, close, note."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from gradspectra_store import alerts as stored
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import answer, plain
from gradspectra_backend.auth import ADMIN, READ
from gradspectra_backend.context import Shared
from gradspectra_backend.routes.fields import Cursor, Limit, RunId
from gradspectra_backend.routes.runs import run_object

router = APIRouter(prefix="/api/v1", tags=["alerts"])

State = Annotated[Literal["open", "acknowledged", "closed"] | None, Query(description="Only alerts in this state.")]
Since = Annotated[
    float | None, Query(ge=0, le=1e11, description="Only alerts opened at or after this time, in seconds since 1970.")
]
SEVERITY = {"info": 0, "warning": 1, "critical": 2}


class AlertChange(BaseModel):
    """What a person does to an alert."""

    model_config = ConfigDict(extra="forbid")

    state: Literal["acknowledged", "closed"] | None = Field(None, description="Acknowledge or close it.")
    note: str | None = Field(None, max_length=10_000, description="A note, plain text.")


@router.get("/runs/{run}/alerts", response_model=schemas.Page[schemas.Alert], dependencies=[READ])
def list_run_alerts(
    context: Shared, run: RunId, state: State = None, since: Since = None, cursor: Cursor = None, limit: Limit = 100
) -> Response:
    """Alerts of one run, newest first."""
    with context.store.read() as conn:
        run_object(conn, run)
        items, following = stored.list_alerts(conn, run=run, state=state, since=since, limit=limit, cursor=cursor)
    return answer({"items": plain(items), "next": following})


@router.get("/runs/{run}/incidents", response_model=schemas.Page[schemas.Incident], dependencies=[READ])
def list_incidents(context: Shared, run: RunId, cursor: Cursor = None, limit: Limit = 100) -> Response:
    """Alerts of one run that belong together: those that opened while the first one of them was open; newest first."""
    with context.store.read() as conn:
        run_object(conn, run)
        items, following = stored.list_incidents(conn, run, limit, cursor)
    return answer({"items": plain(incidents_of(items)), "next": following})


@router.get("/alerts", response_model=schemas.Page[schemas.Alert], dependencies=[READ])
def list_alerts(
    context: Shared, state: State = None, since: Since = None, cursor: Cursor = None, limit: Limit = 100
) -> Response:
    """Alerts of all runs, newest first."""
    with context.store.read() as conn:
        items, following = stored.list_alerts(conn, state=state, since=since, limit=limit, cursor=cursor)
    return answer({"items": plain(items), "next": following})


@router.get("/alerts/{alert}", response_model=schemas.Alert, dependencies=[READ])
def read_alert(context: Shared, alert: Annotated[str, Path(max_length=64)]) -> Response:
    """One alert with its evidence."""
    with context.store.read() as conn:
        return answer(plain(stored.get_alert(conn, alert)))


@router.patch("/alerts/{alert}", response_model=schemas.Alert, dependencies=[ADMIN])
def change_alert(context: Shared, alert: Annotated[str, Path(max_length=64)], change: AlertChange) -> Response:
    """Acknowledge or close an alert, or write a note to it."""
    with context.store.write() as conn:
        changed = stored.patch_alert(conn, alert, change.state, change.note, context.clock())
    context.announce({"type": "alert", "run": changed["run"], "alert": changed})
    return answer(plain(changed))


def incidents_of(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Group alerts by incident. items: alerts, those of one incident in order of opening; so are the incidents.

    Each incident: id, run, attempt, severity (the worst), state, opened_step, closed_step (None while any is open),
    rules and alerts (ids), in order of opening.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(item["incident"], []).append(item)
    return [_incident(identity, members) for identity, members in groups.items()]


def _incident(identity: str, members: list[dict[str, Any]]) -> dict[str, Any]:
    states = {member["state"] for member in members}
    closed = None if states != {"closed"} else max(member["closed_step"] or member["last_step"] for member in members)
    return {
        "id": identity,
        "run": members[0]["run"],
        "attempt": members[0]["attempt"],
        "severity": max((member["severity"] for member in members), key=SEVERITY.__getitem__),
        "state": next(state for state in ("open", "acknowledged", "closed") if state in states),
        "opened_step": members[0]["opened_step"],
        "closed_step": closed,
        "rules": list(dict.fromkeys(member["rule"] for member in members)),
        "alerts": [member["id"] for member in members],
    }
