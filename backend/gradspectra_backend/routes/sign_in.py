"""Signing in from a browser: a token is exchanged for a session cookie."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from gradspectra_store import tokens
from pydantic import BaseModel, Field
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import answer
from gradspectra_backend.auth import ANYONE, COOKIE, Caller, refuse_foreign_pages
from gradspectra_backend.context import Shared
from gradspectra_backend.problems import Problem

router = APIRouter(tags=["sign-in"])


class Login(BaseModel):
    """A token to sign in with."""

    token: str = Field(min_length=1, max_length=200)


@router.post("/login", response_model=schemas.SignedIn)
def login(context: Shared, request: Request, credentials: Login) -> Response:
    """Exchange a token for a session cookie, which a page's own scripts cannot read."""
    refuse_foreign_pages(request, "local")
    now = context.clock()
    address = request.client.host if request.client else ""
    context.logins.check(address, now)
    seconds = context.settings.session_days * 86400
    with context.store.write() as conn:
        scopes = tokens.check_token(conn, credentials.token.strip())
        cookie = (
            None if scopes is None else tokens.open_browser_session(conn, credentials.token.strip(), now, now + seconds)
        )
    if scopes is None or cookie is None:
        context.logins.failed(address, now)
        raise Problem("unauthorized", "the token is unknown or revoked", field="token")
    response = answer({"scopes": sorted(scopes)})
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, cookie, max_age=int(seconds), path="/", secure=secure, httponly=True, samesite="strict")
    return response


@router.post("/logout", status_code=204, dependencies=[ANYONE])
def logout(context: Shared, request: Request) -> Response:
    """End the browser's session."""
    cookie = request.cookies.get(COOKIE)
    if cookie:
        with context.store.write() as conn:
            tokens.close_browser_session(conn, cookie)
    response = Response(status_code=204)
    response.delete_cookie(COOKIE, path="/", httponly=True, samesite="strict")
    return response


@router.get("/api/v1/me", response_model=schemas.Caller)
async def me(context: Shared, caller: Annotated[Caller, ANYONE]) -> Response:
    """Who the caller is to the server, whatever its scopes: these, and whether it asks for tokens at all."""
    return answer(
        {"scopes": sorted(caller.scopes), "how": caller.how, "tokens_required": context.settings.tokens_required}
    )
