"""Is the server alive, is it ready, and what do its counters say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from gradspectra_core import __version__
from gradspectra_store import StoreError, derived, run_views
from gradspectra_store.deliveries import undelivered
from gradspectra_worker.heartbeat import SILENT_SECONDS, UNSWEPT_SECONDS, LivingWorkers
from prometheus_client import CONTENT_TYPE_LATEST
from redis.exceptions import RedisError
from starlette.responses import PlainTextResponse, Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import answer
from gradspectra_backend.auth import READ
from gradspectra_backend.context import Context, Shared

router = APIRouter(prefix="/api/v1", tags=["operation"])


@router.get("/health", response_model=schemas.Health)
def health() -> Response:
    """The process answers; nothing else is looked at."""
    return answer({"status": "ok", "version": __version__})


@router.get(
    "/ready",
    response_model=schemas.Health,
    responses={503: {"model": schemas.Health, "description": "It cannot, and which part says why."}},
)
def ready(context: Shared) -> Response:
    """Whether the server can do its work now: database, dispatcher, and Redis, workers, beat where used; 503 if not."""
    parts = {"database": _database(context), "dispatcher": _dispatcher(context)}
    if context.workers is not None:
        parts["workers"] = _by_redis(_workers, context.workers)
        parts["beat"] = _by_redis(_beat, context.workers)
    fine = all(part["status"] == "ok" for part in parts.values())
    return answer({"status": "ok" if fine else "not ready", "version": __version__, **parts}, 200 if fine else 503)


def _database(context: Context) -> dict[str, Any]:
    try:
        with context.store.read() as conn:
            behind = len(derived.dirty_runs(conn))
    except StoreError as error:
        return {"status": "failed", "detail": str(error)}
    return {"status": "ok", "dialect": context.store.dialect, "runs_behind": behind}


def _dispatcher(context: Context) -> dict[str, Any]:
    problem = context.dispatcher_problem()
    kind = "inline" if context.settings.embedded else "celery"
    return {"status": "ok", "kind": kind} if problem is None else {"status": "failed", "kind": kind, "detail": problem}


def _workers(workers: LivingWorkers) -> dict[str, Any]:
    living = workers.count()
    if not living:
        silent = f"no worker was heard for {SILENT_SECONDS:g} s; records are stored and derived once one is back"
        return {"status": "failed", "living": 0, "detail": silent}
    return {"status": "ok", "living": living}


def _beat(workers: LivingWorkers) -> dict[str, Any]:
    if not workers.sweeping():
        unswept = f"nothing was swept for {UNSWEPT_SECONDS} s: beat is away, or the workers do not keep up"
        return {"status": "failed", "detail": unswept}
    return {"status": "ok"}


def _by_redis(check: Callable[[LivingWorkers], dict[str, Any]], workers: LivingWorkers) -> dict[str, Any]:
    """What a check of the workers says, or that Redis did not say."""
    try:
        return check(workers)
    except RedisError as error:
        return {"status": "failed", "detail": f"Redis did not say: {error}"}


@router.get("/metrics", response_class=PlainTextResponse, dependencies=[READ])
def metrics(context: Shared) -> Response:
    """Counters of this process, the state of the runs and of deliveries, for Prometheus."""
    with context.store.read() as conn:
        projects = run_views.list_projects(conn)
        behind = len(derived.dirty_runs(conn))
        due, failed = undelivered(conn)
    runs, running = (sum(project[name] for project in projects) for name in ("runs", "running"))
    text = context.meters.text(
        listeners=len(context.hub), runs=runs, running=running, behind=behind, due=due, failed=failed
    )
    return Response(text, media_type=CONTENT_TYPE_LATEST)
