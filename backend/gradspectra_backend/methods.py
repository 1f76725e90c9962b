"""Which methods an address takes: HEAD wherever GET is, and an Allow header that names them all."""

from __future__ import annotations

from contextlib import suppress

from fastapi import Request
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
STREAM = "/api/v1/live"
"""Has no end, and nothing to tell in headers: it takes GET alone."""


class _HeadIsThere(Exception):
    """The answer's head was sent, and its body is not asked for."""


class HeadAsGet:
    """Answers HEAD as GET without the body; one that would be made while it is sent is not made."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD" or scope["path"] == STREAM:
            await self.app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                await send({"type": "http.response.body", "body": b""})
                raise _HeadIsThere

        with suppress(_HeadIsThere):
            await self.app({**scope, "method": "GET"}, receive, send_head)


def allowed(request: Request) -> str:
    """The methods of all routes at an address, for its Allow header: the framework tells those of the first alone.

    Empty where no route of the application itself has the address.
    """
    routes = [route for route in request.app.routes if not isinstance(route, Mount)]
    found = [
        method
        for method in METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    if "GET" in found and request.scope["path"] != STREAM:
        found.insert(1, "HEAD")
    return ", ".join(found)
