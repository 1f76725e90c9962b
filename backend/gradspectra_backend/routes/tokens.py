"""Tokens: made (and shown once), listed, revoked."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Path
from gradspectra_store import tokens as stored
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from gradspectra_backend import schemas
from gradspectra_backend.answers import answer
from gradspectra_backend.auth import ADMIN
from gradspectra_backend.context import Shared
from gradspectra_backend.problems import Problem

router = APIRouter(prefix="/api/v1/tokens", tags=["settings"], dependencies=[ADMIN])


class NewToken(BaseModel):
    """A token to make."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200, description="What it is for.")
    scopes: list[Literal["ingest", "read", "admin"]] = Field(
        ["ingest", "read"], min_length=1, max_length=3, description="What it may do; admin may do all."
    )


@router.get("", response_model=schemas.Page[schemas.Token])
def list_tokens(context: Shared) -> Response:
    """Tokens with name, scopes and dates; never the tokens themselves."""
    with context.store.read() as conn:
        return answer({"items": stored.list_tokens(conn), "next": None})


@router.post("", response_model=schemas.MadeToken, status_code=201)
def create_token(context: Shared, wanted: NewToken) -> Response:
    """Make a token. The answer is the only place where it is ever shown."""
    scopes = list(dict.fromkeys(wanted.scopes))
    with context.store.write() as conn:
        identity, plain = stored.create_token(conn, wanted.name, scopes, context.clock())
    return answer({"id": identity, "name": wanted.name, "scopes": scopes, "token": plain}, 201)


@router.delete("/{token}", status_code=204)
def revoke_token(context: Shared, token: Annotated[str, Path(max_length=64)]) -> None:
    """Revoke a token; sessions signed in with it end."""
    with context.store.write() as conn:
        if not stored.revoke_token(conn, token, context.clock()):
            raise Problem("unknown-token", f"there is no token {token!r} that could be revoked")
