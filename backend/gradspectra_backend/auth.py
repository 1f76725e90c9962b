"""Who calls, and what they may do: bearer tokens, the browser's cookie, and the check against forged requests."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import Depends, Request
from gradspectra_store import tokens
from starlette.concurrency import run_in_threadpool

from gradspectra_backend.context import Context, context_of
from gradspectra_backend.known_queries import refuse_unknown
from gradspectra_backend.problems import Problem
from gradspectra_backend.settings import is_loopback

SCOPES = ("ingest", "read", "admin")
"""ingest: make runs and send records. read: all GET calls. admin: everything, also edit, delete and make tokens."""

COOKIE = "gradspectra_session"
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. how: "local" (a loopback server asks nobody), "token" or "cookie"."""

    scopes: frozenset[str]
    how: str

    def may(self, scope: str) -> bool:
        """Whether the caller has `scope`; admin has all."""
        return scope in self.scopes or "admin" in self.scopes


class Need:
    """A dependency that lets only callers with `scope` pass; raises Problem 401 or 403.

    Whoever may pass is then told of parameters that the call does not know (422).
    """

    def __init__(self, scope: str) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Caller:
        """Find out who calls and whether they may."""
        caller = await caller_of(request)
        if not caller.may(self.scope):
            raise Problem("forbidden", f"this needs a token with the scope {self.scope!r}", extra={"scope": self.scope})
        refuse_unknown(request)
        return caller


async def caller_of(request: Request) -> Caller:
    """Who calls, whatever they may; raises Problem 401, and 403 for what another site's page makes a browser send."""
    context = context_of(request)
    if not context.settings.tokens_required:
        caller = _local(request)
    elif (header := request.headers.get("authorization")) is not None:
        caller = await run_in_threadpool(_by_token, context, header)
    else:
        caller = await run_in_threadpool(_by_cookie, context, request.cookies.get(COOKIE))
    refuse_foreign_pages(request, caller.how)
    return caller


def _local(request: Request) -> Caller:
    address = (request.scope.get("server") or ("", None))[0]
    if "/" not in address and not is_loopback(address):
        raise Problem(
            "unauthorized",
            f"the server was made for callers on its own machine, and this call came in at {address}",
            remedy="Set GRADSPECTRA_HOST to the address that the server listens on, so that it asks for tokens.",
        )
    return Caller(frozenset(SCOPES), "local")


def _by_token(context: Context, header: str) -> Caller:
    scheme, _, plain = header.partition(" ")
    if scheme.lower() != "bearer" or not plain.strip():
        raise _unauthorized("the Authorization header must read `Bearer gs_…`")
    with context.store.read() as conn:
        scopes = tokens.check_token(conn, plain.strip())
    if scopes is None:
        raise _unauthorized("the token is unknown or revoked")
    return Caller(frozenset(scopes), "token")


def _by_cookie(context: Context, cookie: str | None) -> Caller:
    if cookie is None:
        raise _unauthorized("this server asks for a token")
    with context.store.read() as conn:
        scopes = tokens.check_browser_session(conn, cookie, context.clock())
    if scopes is None:
        raise _unauthorized("the browser's session has ended", remedy="Sign in again at /login.")
    return Caller(frozenset(scopes), "cookie")


def _unauthorized(detail: str, remedy: str | None = None) -> Problem:
    return Problem("unauthorized", detail, remedy=remedy, headers={"WWW-Authenticate": "Bearer"})


def refuse_foreign_pages(request: Request, how: str) -> None:
    """Refuse what another site's page makes a browser send here; raises Problem 403.

    A browser says where a request comes from by Sec-Fetch-Site or Origin. With a cookie one of them must be there;
    programs send neither, and bearer tokens cannot be sent by a foreign page at all.
    """
    if request.method in SAFE_METHODS or how == "token":
        return
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None:
        if site in ("same-origin", "none"):
            return
    elif origin is not None:
        if _is_own(origin, request.headers.get("host")):
            return
    elif how == "local":
        return
    raise Problem("forbidden", "the request does not come from this server's own page", remedy="Use a bearer token.")


def _is_own(origin: str, host: str | None) -> bool:
    """Whether an Origin header names the host that was called; one that is no address does not."""
    try:
        named = urlsplit(origin).netloc
    except ValueError:
        return False
    return named != "" and named == host


ANYONE = Depends(caller_of)
"""Whoever has a token, or needs none."""
READ = Depends(Need("read"))
INGEST = Depends(Need("ingest"))
ADMIN = Depends(Need("admin"))
