"""The call that every step comes in by: one batch of records, stored in one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

import orjson
import sqlalchemy as sa
from fastapi import APIRouter, Request
from gradspectra_core.jsonform import batch_from_json
from gradspectra_core.records import Batch
from gradspectra_core.wire import CONTENT_TYPE, Limits, WireError, decode_batch
from gradspectra_store.errors import SequenceGap, StoreBusy, StoreError
from gradspectra_store.ingest import Ingested, ingest
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import dumps, plain
from gradspectra_backend.auth import INGEST
from gradspectra_backend.bodies import decoded
from gradspectra_backend.context import Context, Shared
from gradspectra_backend.lane import AtOnce, Lane
from gradspectra_backend.problems import Problem
from gradspectra_backend.routes.fields import RunId
from gradspectra_backend.routes.lifecycle import fresh_alerts

router = APIRouter(prefix="/api/v1", tags=["a training job"])

LIMITS = Limits()
SHORT = 64 << 10
"""A body of at most so many bytes is stored in the event loop, where no disk and no other writer is waited for."""
_lane = Lane("gradspectra-ingest")
_at_once = AtOnce()
_Write = Callable[[], AbstractContextManager[sa.Connection]]

BODY = {
    "requestBody": {
        "required": True,
        "content": {
            CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"schema": {"$ref": "#/components/schemas/Batch"}},
        },
    }
}


@router.post("/runs/{run}/records", response_model=schemas.Stored, dependencies=[INGEST], openapi_extra=BODY)
async def post_records(context: Shared, run: RunId, request: Request) -> Response:
    """Store one batch of records, in the binary form or as JSON, plain or gzipped.

    The same (session, sequence) again answers "repeated" and changes nothing; a missing number is 409 with the one
    expected. The answer carries the run's alerts that this session was not told of yet, and
    whether anybody is looking.
    """
    try:
        body = await request.body()
    except ClientDisconnect:  # nobody is there to read it, but nothing has failed either
        raise Problem("malformed-body", "the body broke off before its end") from None
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    return await take(context, run, body, content_type, request.headers.get("content-encoding", ""))


async def take(context: Context, run: str, body: bytes, content_type: str, encoding: str = "") -> Response:
    """Store the batch in a body: a short one at once, where nothing has to be waited for, the others in a thread."""
    if len(body) <= SHORT and context.stores_at_once and not encoding and _at_once.open:
        with suppress(StoreBusy):
            return _at_once.run(_answered, context, run, body, content_type, encoding, context.store.write_at_once)
    return await _lane.run(_answered, context, run, body, content_type, encoding, context.store.write)


def take_now(context: Context, run: str, body: bytes) -> bytes | None:
    """Store the batch in a short body in the binary form, in the event loop; returns the body of the answer.

    None where nothing was stored, because it is refused or has to wait: `take` then says why, or waits.
    """
    if _at_once.open:
        with suppress(Exception):  # whatever it is, it comes again there
            return _at_once.run(_stored, context, run, body, CONTENT_TYPE, context.store.write_at_once)
    return None


def _answered(context: Context, run: str, body: bytes, content_type: str, encoding: str, write: _Write) -> Response:
    try:
        body = decoded(body, encoding, context.settings.max_body)
        return Response(_stored(context, run, body, content_type, write), media_type="application/json")
    except (StoreError, WireError, Problem) as error:
        context.meters.batches.labels("gap" if isinstance(error, SequenceGap) else "refused").inc()
        raise


def _stored(context: Context, run: str, body: bytes, content_type: str, write: _Write) -> bytes:
    started = time.perf_counter()
    meters = context.meters
    batch = parse(body, content_type)
    with write() as conn:
        done = ingest(conn, run, batch, context.clock())
    meters.seconds.observe(time.perf_counter() - started)
    meters.batches.labels(done.status).inc()
    meters.bytes.inc(len(body))
    if done.status == "stored":
        meters.steps.inc(len(batch.steps))
        _tell(context, run, done)
    alerts = fresh_alerts(context, run, batch.session, look=False)
    return dumps(
        {
            "status": done.status,
            "next_sequence": batch.sequence + 1,
            "last_step": done.last_step,
            "alerts": plain(alerts),
            "stop_at_step": done.stop_at_step,
            "viewed": context.audience.present,
        }
    )


def _tell(context: Context, run: str, done: Ingested) -> None:
    """After the commit: ask for derivation, tell the live streams. Either may be lost without harm."""
    context.dispatcher.request(run)
    context.announce({"type": "run", "run": run, "batch": done.batch, "step": done.last_step, "state": "running"})


def parse(body: bytes, content_type: str) -> Batch:
    """The batch in a body; raises WireError, or Problem where the content type or the JSON is wrong."""
    if content_type == CONTENT_TYPE:
        return decode_batch(body, limits=LIMITS)
    if content_type == "application/json":
        return batch_from_json(_json(body), LIMITS)
    raise Problem(
        "unsupported-media-type",
        f"Content-Type must be {CONTENT_TYPE} or application/json, got {content_type[:80]!r}",
        field="Content-Type",
    )


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(
            "malformed-body",
            f"the body is not JSON: {error}",
            remedy='Send NaN and ±inf as "NaN", "Infinity", "-Infinity".',
        ) from None
