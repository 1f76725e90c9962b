"""What a training job calls besides sending records: start or resume a run, say that it lives, finish it."""

from __future__ import annotations

import time
from typing import Any, Literal

from fastapi import APIRouter, Request
from gradspectra_core.jsonform import number_from_json
from gradspectra_store import runs as stored
from gradspectra_store.checks import clean_json
from gradspectra_store.runs import RunRequest
from gradspectra_store.unmeasured import Unmeasured
from pydantic import AliasChoices, BaseModel, ConfigDict, Field
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import answer, plain
from gradspectra_backend.auth import INGEST
from gradspectra_backend.context import Context, Shared
from gradspectra_backend.routes.fields import LARGEST_STEP, RunId
from gradspectra_backend.routes.runs import run_object

router = APIRouter(prefix="/api/v1", tags=["a training job"])


class RunStart(BaseModel):
    """A new run, or a new attempt of one."""

    model_config = ConfigDict(extra="ignore")

    project: str = Field(description="Project, 1 to 200 characters.")
    name: str | None = Field(
        None,
        validation_alias=AliasChoices("name", "run"),
        description="Name of the run; the date and time if left out.",
    )
    config: dict[str, Any] = Field({}, description="Configuration, any JSON object of at most 256 KiB and 100 levels.")
    tags: list[str] = Field([], description="At most 64 tags.")
    notes: str = Field("", description="Plain text.")
    total_steps: int | None = Field(None, ge=1, le=LARGEST_STEP, description="Steps the run is to take.")
    resume: str | None = Field(
        None, description='Run to resume, the key of its session, or "auto" for the newest of this project and name.'
    )
    start_step: int = Field(0, ge=0, le=LARGEST_STEP, description="Steps already taken.")
    environment: dict[str, Any] = Field({}, description="Versions and machine, any JSON object.")
    version: str | None = Field(None, description="Version of the agent.")
    rank: int = Field(0, ge=0, lt=2**31, description="Rank of the process; those above 0 join the run of rank 0.")
    session_key: str | None = Field(None, description="The same key again gives the same run and session.")


class Heartbeat(BaseModel):
    """A sign of life of one session."""

    session: str = Field(max_length=200)
    overhead: float | str | None = Field(None, description="Share of step time that the agent spends.")
    step: int | None = Field(None, ge=0, le=LARGEST_STEP, description="The last step taken.")
    not_measured: list[str] | None = Field(
        None, description="What is missing from the records and why, a sentence each; left out where nothing is new."
    )
    norms_that_disagreed: int = Field(
        0, description="Steps whose layers did not give the total norm of the gradient; read with not_measured."
    )


class Finish(BaseModel):
    """The end of one session."""

    session: str = Field(max_length=200)
    state: Literal["finished", "failed"] = "finished"


@router.post("/runs", response_model=schemas.Started, status_code=201, dependencies=[INGEST])
def start_run(context: Shared, request: Request, start: RunStart) -> Response:
    """Make a run, or resume one, and open a session to send records in."""
    now = context.clock()
    environment = start.environment | ({"agent": start.version} if start.version else {})
    wanted = RunRequest(
        project=start.project,
        name=time.strftime("run %Y-%m-%d %H:%M:%S", time.localtime(now)) if start.name is None else start.name,
        config=plain(clean_json("config", start.config)),
        tags=start.tags,
        notes=start.notes,
        total_steps=start.total_steps,
        resume=start.resume,
        start_step=start.start_step,
        environment=plain(clean_json("environment", environment)),
        now=now,
        session_key=start.session_key,
        rank=start.rank,
    )
    with context.store.write() as conn:
        started = stored.start_run(conn, wanted)
    context.announce({"type": "run", "run": started.run, "state": "running"})
    url = str(request.base_url.replace(path=f"/runs/{started.run}"))
    body = {
        "id": started.run,
        "attempt": started.attempt,
        "session": started.session,
        "next_sequence": started.next_sequence,
        "url": url,
    }
    return answer(body, 201, headers={"Location": f"/api/v1/runs/{started.run}"})


@router.post("/runs/{run}/heartbeat", response_model=schemas.Beaten, dependencies=[INGEST])
def beat(context: Shared, run: RunId, heartbeat: Heartbeat) -> Response:
    """Say that the job lives, every 10 s also without steps; a run silent for 60 s counts as lost."""
    overhead = None if heartbeat.overhead is None else number_from_json(heartbeat.overhead, "overhead")
    reasons = heartbeat.not_measured
    said = None if reasons is None else Unmeasured.of(reasons, heartbeat.norms_that_disagreed)
    with context.store.write() as conn:
        stop = stored.heartbeat(conn, run, heartbeat.session, overhead, context.clock(), said)
    alerts = plain(fresh_alerts(context, run, heartbeat.session, look=True))
    return answer({"alerts": alerts, "stop_at_step": stop, "viewed": context.audience.present})


@router.post("/runs/{run}/finish", response_model=schemas.Finished, dependencies=[INGEST])
def finish(context: Shared, run: RunId, ending: Finish) -> Response:
    """End a session; the run takes its state, and everything it sent is derived to the end."""
    with context.store.write() as conn:
        stored.finish_run(conn, run, ending.session, ending.state, context.clock())
        ended = run_object(conn, run)
    context.dispatcher.request(run)
    context.announce({"type": "run", "run": run, "state": ended["state"]})
    return answer({"id": run, "state": ended["state"], "last_step": ended["last_step"]})


def fresh_alerts(context: Context, run: str, session: str, *, look: bool) -> list[dict[str, Any]]:
    """Alerts of the run's present attempt that this session was not told of yet."""
    if not look and not context.news.pending(run, session):
        return []
    with context.store.read() as conn:
        return context.news.news(conn, run, session)
