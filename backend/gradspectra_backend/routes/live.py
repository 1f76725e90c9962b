"""Live events: one stream per open page tells which runs advanced and which alerts changed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from gradspectra_store import run_views
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from gradspectra_backend.auth import READ
from gradspectra_backend.context import Context, Shared
from gradspectra_backend.live import DELETED, RESYNC, stream
from gradspectra_backend.problems import Problem
from gradspectra_backend.routes.fields import names_of

router = APIRouter(prefix="/api/v1", tags=["live"])

MOST_RUNS = 100


class Watched:
    """The checked query of a stream: runs asked for (None: all) and the last event that the client has."""

    def __init__(
        self,
        context: Shared,
        runs: Annotated[
            str | None, Query(max_length=10_000, description="Runs separated by commas; all if left out.")
        ] = None,
        last_event_id: Annotated[str | None, Header(max_length=200)] = None,
    ) -> None:
        self.runs = names_of(runs) or None
        self.last = last_event_id
        if self.runs is not None and len(self.runs) > MOST_RUNS:
            raise Problem("bad-request", f"runs: at most {MOST_RUNS} by name, got {len(self.runs)}", field="runs")
        if len(context.hub) >= context.settings.max_listeners:
            raise Problem(
                "unavailable",
                f"{len(context.hub)} live streams are open already",
                remedy="Close other tabs, or raise GRADSPECTRA_MAX_LISTENERS.",
                headers={"Retry-After": "10"},
            )
        if self.runs and (last_event_id or "").endswith(f".{DELETED}") and not _some_left(context, self.runs):
            raise HTTPException(204)  # which tells a browser not to connect again


def _some_left(context: Context, runs: list[str]) -> bool:
    with context.store.read() as conn:
        return any(run_views.get_run(conn, run) is not None for run in runs)


GONE: dict[int | str, dict[str, Any]] = {204: {"description": "The client knows that all runs it names are deleted."}}


@router.get("/live", response_class=EventSourceResponse, dependencies=[READ], responses=GONE)
async def live(context: Shared, watched: Annotated[Watched, Depends()]) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events: `run` (a run advanced or changed state), `alert`, `resync` (events were lost: ask anew).

    The first one is `opened`: {"seconds", "runs"}, by run how many seconds ago it was last announced, as far back as
    `seconds`. Whoever read a run before it opened the stream sees whether it has changed since.
    Events carry no data but where a run stands; the state of one that is not there any more is `deleted`. A stream
    says early where the runs it names stand now; after a reconnection with Last-Event-ID that is all that was missed,
    alerts by a `resync`. It ends when all runs it names are deleted, and who connects again is answered 204.
    """

    async def backlog() -> list[dict[str, Any]]:
        return await run_in_threadpool(missed, context, watched.runs, watched.last)

    async for event in stream(context.hub, watched.runs, backlog):
        yield event


def missed(context: Context, runs: list[str] | None, last: str | None) -> list[dict[str, Any]]:
    """What a stream is told at its beginning. last: the id of the last event the client had, `run.batch`, or None."""
    known, _, batch = (last or "").rpartition(".")
    events: list[dict[str, Any]] = []
    behind = last is not None and runs is None
    with context.store.read() as conn:
        for run in runs or ():
            found = run_views.get_run(conn, run)
            if found is None:
                events.append({"type": "run", "run": run, "state": DELETED})
                continue
            behind = behind or (last is not None and (run != known or str(found["last_batch"]) != batch))
            events.append(
                {
                    "type": "run",
                    "run": run,
                    "batch": found["last_batch"],
                    "step": found["last_step"],
                    "derived_step": found["derived_step"],
                    "state": found["state"],
                }
            )
    return [RESYNC, *events] if behind else events
