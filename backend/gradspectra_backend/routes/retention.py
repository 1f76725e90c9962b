"""What is kept for how long, and what that would free: told before anything goes."""

from __future__ import annotations

from fastapi import APIRouter
from gradspectra_store.retention import retention_in_force
from starlette.responses import Response

from gradspectra_backend import retention_schemas
from gradspectra_backend.answers import answer
from gradspectra_backend.auth import READ
from gradspectra_backend.context import Shared
from gradspectra_backend.retention_view import retention_object
from gradspectra_backend.routes.fields import Cursor, Limit

router = APIRouter(prefix="/api/v1", tags=["operation"])


@router.get("/retention", response_model=retention_schemas.Retention, dependencies=[READ])
def read_retention(context: Shared, cursor: Cursor = None, limit: Limit = 50) -> Response:
    """The retention in force, and the runs it comes to: when, and what that frees."""
    with context.store.read() as conn:
        wanted = retention_in_force(conn) or context.settings.retention
        return answer(retention_object(conn, wanted, cursor, limit))
