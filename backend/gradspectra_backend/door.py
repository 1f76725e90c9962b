"""What every request passes on its way in and out: host names, sizes, odd bytes, and the security headers."""

from __future__ import annotations

from collections.abc import Iterable

from fastapi import FastAPI, Request
from gradspectra_frontend.assets import CONTENT_SECURITY_POLICY
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradspectra_backend.auth import SAFE_METHODS, caller_of
from gradspectra_backend.problems import Problem

SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


_SECURITY_HEADERS = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
_SECURITY_NAMES = frozenset(name for name, _ in _SECURITY_HEADERS)
_NOT_KEPT = (b"cache-control", b"no-store")


def secured(said: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer with those that every answer has."""
    headers = [header for header in said if header[0] not in _SECURITY_NAMES]
    kept = any(name == b"cache-control" for name, _ in headers)
    return [*headers, *_SECURITY_HEADERS] if kept else [*headers, *_SECURITY_HEADERS, _NOT_KEPT]


class SecurityHeaders:
    """Adds the security headers to every answer, and `Cache-Control: no-store` where an answer says nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": secured(message.get("headers", ()))}
            await send(message)

        await self.app(scope, receive, send_with_headers)


def install(app: FastAPI) -> None:
    """Make `app` answer what nobody foresaw with a problem: outside of every layer, and so with headers of its own."""

    async def on_bug(request: Request, error: Exception) -> Response:
        response = Problem("internal", f"{type(error).__name__} while answering").answer(request.scope)
        response.headers.update(SECURITY_HEADERS | {"Cache-Control": "no-store"})
        return response

    app.add_exception_handler(Exception, on_bug)


MOST_HOSTS = 64
"""Host headers remembered: a wildcard among the allowed names lets any number of them pass."""


class TrustedHosts:
    """Refuses Host headers that are not ours, as a problem document; the check itself is Starlette's.

    A Host that has passed is not checked again: it is one of a few, which every request repeats. passed: takes them.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], passed: set[str]) -> None:
        self.app = app
        self.hosts = hosts
        self._check = TrustedHostMiddleware(self._trusted, hosts, www_redirect=False)
        self._passed = passed

    @staticmethod
    async def _trusted(scope: Scope, _receive: Receive, _send: Send) -> None:
        scope["gradspectra.trusted"] = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = Headers(scope=scope).get("host", "")
            if host not in self._passed and not await self._passes(host, scope, receive):
                problem = Problem("wrong-host", f"this server does not answer to the host name {host[:200]!r}")
                await problem.answer(scope)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _passes(self, host: str, scope: Scope, receive: Receive) -> bool:
        async def ignore(_: Message) -> None:
            """The check's own answer, in place of which a problem document is sent."""

        await self._check(scope, receive, ignore)
        passes = bool(scope.pop("gradspectra.trusted", False))
        if passes and len(self._passed) < MOST_HOSTS:
            self._passed.add(host)
        return passes


LONGEST_CALL = 2 << 20
"""Bytes in the body of a call other than a batch: above what a run may say of itself, however its text is escaped."""
OF_ANYBODY = 64 << 10
"""Bytes that are read before it is known who calls: JSON is read in the event loop, 0.4 s for each MiB at worst."""
_SIGN_IN = "/login"


class RequestBounds:
    """Refuses bodies of too many bytes, announced or not, and the character NUL, which no database column takes.

    A long body is read of nobody but a caller who is known; a batch asks who sends it by itself, before it is read.
    """

    def __init__(self, app: ASGIApp, max_body: int) -> None:
        self.app = app
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self._longest(scope["path"])
        problem = self._problem(scope, limit) or await _stranger(scope)
        if problem is not None:
            await problem.answer(scope)(scope, receive, send)
            return
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise HTTPException(413, too_large(limit).detail)
            return message

        await self.app(scope, bounded, send)

    def _longest(self, path: str) -> int:
        if path.endswith("/records"):
            return self.max_body
        return min(self.max_body, OF_ANYBODY if path == _SIGN_IN else LONGEST_CALL)

    def _problem(self, scope: Scope, limit: int) -> Problem | None:
        if "\x00" in scope["path"] or b"%00" in scope.get("query_string", b""):
            return Problem("malformed-body", "the address holds the character NUL", remedy="Leave it out.")
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal():
            return Problem("malformed-body", f"Content-Length must be a number, got {length[:40]!r}")
        if len(length) > 15 or int(length) > limit:
            return too_large(limit)
        return None


async def _stranger(scope: Scope) -> Problem | None:
    """What to answer a caller who is not known and sends more than is read of anybody, announced or in pieces."""
    if scope["method"] in SAFE_METHODS or scope["path"] == _SIGN_IN or scope["path"].endswith("/records"):
        return None
    headers = Headers(scope=scope)
    if "transfer-encoding" not in headers and int(headers.get("content-length", "0")) <= OF_ANYBODY:
        return None
    try:
        await caller_of(Request(scope))
    except Problem as problem:
        return problem
    return None


def too_large(limit: int) -> Problem:
    """The problem of a body of more than `limit` bytes."""
    return Problem("too-large", f"a body may have at most {limit:,} bytes", extra={"limit": limit})
