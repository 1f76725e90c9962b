"""Channels: where alerts are delivered, a test of one, and the log of what was sent."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import httpx2
from fastapi import APIRouter, Path, Query
from gradspectra_store import channels as stored
from gradspectra_store.deliveries import list_deliveries
from gradspectra_worker.deliver import TIMEOUT, send
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import answer
from gradspectra_backend.auth import ADMIN
from gradspectra_backend.context import Shared
from gradspectra_backend.problems import Problem
from gradspectra_backend.routes.fields import Cursor, Limit

router = APIRouter(prefix="/api/v1", tags=["settings"], dependencies=[ADMIN])

ChannelId = Annotated[str, Path(max_length=64)]


class NewChannel(BaseModel):
    """A channel to add."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["webhook"] = "webhook"
    name: str = Field("", max_length=200, description="What people call it.")
    url: str = Field(max_length=2000, description="Where alerts are posted as JSON; http or https.")
    secret: str = Field("", max_length=200, description="Key of the signature in X-Gradspectra-Signature.")
    min_severity: Literal["info", "warning", "critical"] = Field("warning", description="Alerts below it are not sent.")


@router.get("/channels", response_model=schemas.Page[schemas.Channel])
def list_channels(context: Shared) -> Response:
    """Channels, oldest first; never their secrets."""
    with context.store.read() as conn:
        return answer({"items": stored.list_channels(conn), "next": None})


@router.post("/channels", response_model=schemas.Channel, status_code=201)
def add_channel(context: Shared, wanted: NewChannel) -> Response:
    """Add a channel; alerts that open or get worse from now on are delivered to it."""
    with context.store.write() as conn:
        return answer(stored.add_channel(conn, now=context.clock(), **wanted.model_dump()), 201)


@router.delete("/channels/{channel}", status_code=204)
def delete_channel(context: Shared, channel: ChannelId) -> None:
    """Delete a channel and its log."""
    with context.store.write() as conn:
        if not stored.delete_channel(conn, channel):
            raise _unknown(channel)


@router.post("/channels/{channel}/test", response_model=schemas.Tested)
def send_test(context: Shared, channel: ChannelId) -> Response:
    """Send a made-up alert to a channel now, once, and say how it went."""
    with context.store.read() as conn:
        target = stored.channel_target(conn, channel)
    if target is None:
        raise _unknown(channel)
    now = context.clock()
    delivery = {"key": f"test-{channel}-{now:.0f}", "severity": "info", "channel": target, **sample(now)}
    with httpx2.Client(timeout=TIMEOUT, follow_redirects=False, trust_env=False) as client:
        outcome = send(client, delivery, now, context.settings.alert_allow_hosts)
    if not outcome.ok:
        raise Problem(
            "undeliverable", f"the test was not delivered: {outcome.error}", extra={"answered": outcome.status}
        )
    return answer({"ok": True, "status": outcome.status})


@router.get("/deliveries", response_model=schemas.Page[schemas.Delivery])
def log(
    context: Shared,
    alert: Annotated[str | None, Query(max_length=64, description="Only of this alert.")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Response:
    """What was delivered, what is due, and what failed and why; newest first."""
    with context.store.read() as conn:
        items, following = list_deliveries(conn, alert=alert, limit=limit, cursor=cursor)
    return answer({"items": items, "next": following})


def sample(now: float) -> dict[str, Any]:
    """An alert that never was, with all the fields of a real one, and its run."""
    alert = {
        "id": "test",
        "run": "test",
        "attempt": 1,
        "incident": "test",
        "rule": "test",
        "severity": "info",
        "state": "open",
        "layers": [],
        "first_layer": None,
        "opened_step": 1,
        "last_step": 1,
        "closed_step": None,
        "opened_at": now,
        "value": None,
        "threshold": None,
        "message": "This is a test of the channel.",
        "meaning": "Alerts of your runs arrive here.",
        "remedy": "Nothing to do.",
        "evidence": {},
        "muted": False,
    }
    return {"alert": alert, "run": {"id": "test", "project": "test", "name": "test"}}


def _unknown(channel: str) -> Problem:
    return Problem("unknown-channel", f"there is no channel {channel!r}")
