"""The store's errors and the wire's, as problems."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from gradspectra_core.wire import WireError
from gradspectra_store import errors
from starlette.responses import Response

from gradspectra_backend.problems import Problem

log = logging.getLogger(__name__)


def problem_of(error: errors.StoreError | WireError) -> Problem:
    """The problem that an error of the store, or of a batch's form, stands for."""
    match error:
        case WireError() | errors.BadBatch():
            return Problem("bad-batch", str(error), field=error.field)
        case errors.BadInput():
            return Problem("bad-request", str(error), field=error.field)
        case errors.UnknownRun():
            return Problem("unknown-run", str(error), extra={"run": error.run})
        case errors.UnknownSession():
            return Problem("unknown-session", str(error), field="session")
        case errors.UnknownAlert():
            return Problem("unknown-alert", str(error))
        case errors.UnknownLayer():
            return Problem("unknown-layer", str(error), field="layer")
        case errors.UnknownStatistic():
            return Problem("unknown-statistic", str(error), extra={"known": list(error.known)})
        case errors.SequenceGap():
            place = {"expected": error.expected, "last_step": error.last_step}
            return Problem("sequence-gap", str(error), field="sequence", extra=place)
        case errors.StoreFull():
            return Problem("storage-full", str(error), headers={"Retry-After": "30"})
        case errors.StoreDamaged():
            log.error("the database is damaged: %s", error)
            return Problem("damaged", str(error), remedy="A backup has it: docs/operating.md says how to restore one.")
        case errors.StoreUnavailable():
            return Problem("unavailable", str(error), headers={"Retry-After": "2"})
    log.error("the store failed: %s", error)
    return Problem("internal", str(error))


def install(app: FastAPI) -> None:
    """Make `app` answer the errors of the store with problems."""

    async def on_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.StoreError | WireError)
        return problem_of(error).answer(request.scope)

    app.add_exception_handler(errors.StoreError, on_error)
    app.add_exception_handler(WireError, on_error)
