"""The short way of the call that comes most: a batch of records goes straight to its endpoint, past the routing."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from collections.abc import Set as AbstractSet

from fastapi import Request
from gradspectra_core.wire import CONTENT_TYPE, WireError
from gradspectra_store.errors import StoreError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gradspectra_backend.auth import Need
from gradspectra_backend.context import Context, context_of
from gradspectra_backend.door import secured
from gradspectra_backend.problems import Problem, from_http
from gradspectra_backend.routes.records import SHORT, post_records, take
from gradspectra_backend.store_problems import problem_of

_PATH = re.compile(r"/api/v1/runs/([0-9A-Za-z_-]{1,64})/records")

_BINARY = CONTENT_TYPE.encode()
_PLAIN_FIELDS = frozenset(
    (b"host", b"accept", b"accept-encoding", b"user-agent", b"content-type", b"content-length", b"connection")
)
_LOOPBACK = ("127.0.0.1", "::1")


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


class ShortestWay:
    """Answers that call before everything that others pass, where it is short, plain and asks for no token.

    hosts: names of this server that the check of a call before has let pass.
    """

    def __init__(self, app: ASGIApp, hosts: AbstractSet[str]) -> None:
        self.app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None or not self._plain(scope):
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        response = await _answered(scope, take(scope["app"].state.context, found[1], body, CONTENT_TYPE))
        headers = secured(response.raw_headers)
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    def _plain(self, scope: Scope) -> bool:
        """Whether everything that is checked of a call is as it nearly always is."""
        fields = dict(scope["headers"])
        length = fields.get(b"content-length", b"")
        context: Context = scope["app"].state.context
        return (
            len(fields) == len(scope["headers"])
            and fields.keys() <= _PLAIN_FIELDS
            and fields.get(b"content-type") == _BINARY
            and length.isdigit()
            and len(length) <= 6
            and int(length) <= min(SHORT, context.settings.max_body)
            and not scope["query_string"]
            and fields.get(b"accept") == b"application/json"
            and fields.get(b"host", b"").decode("latin-1") in self._hosts
            and (scope.get("server") or ("",))[0] in _LOOPBACK
            and not context.settings.tokens_required
        )


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
