"""The short way of the call that comes most: a batch of records goes straight to its endpoint, past the routing."""

from __future__ import annotations

import re
from collections.abc import Awaitable

from fastapi import Request
from gradspectra_core.wire import WireError
from gradspectra_store.errors import StoreError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gradspectra_backend.auth import Need
from gradspectra_backend.context import context_of
from gradspectra_backend.problems import Problem, from_http
from gradspectra_backend.routes.records import post_records
from gradspectra_backend.store_problems import problem_of

_PATH = re.compile(r"/api/v1/runs/([0-9A-Za-z_-]{1,64})/records")


class ShortWay:
    """Answers `POST /api/v1/runs/{run}/records` as its route does, and passes everything else on.

    To find that route, solve its dependencies and wrap the endpoint, anew at each call, takes the framework as long
    as the rest of a call in the event loop. Paths with anything unusual go the long way, which says what is wrong.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._need = Need("ingest")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self.app(scope, receive, send)
            return
        response = await _answered(scope, self._answer(found[1], Request(scope, receive)))
        await response(scope, receive, send)

    async def _answer(self, run: str, request: Request) -> Response:
        await self._need(request)
        return await post_records(context_of(request), run, request)


async def _answered(scope: Scope, answer: Awaitable[Response]) -> Response:
    """The answer, or the problem document of what is wrong."""
    try:
        return await answer
    except Problem as problem:
        return problem.answer(scope)
    except HTTPException as error:
        return from_http(error).answer(scope)
    except (StoreError, WireError) as error:
        return problem_of(error).answer(scope)
