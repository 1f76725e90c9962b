"""The OpenAPI document: FastAPI's own, with the batch, problem documents for every error, and how to sign in."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from gradspectra_backend.batch_schema import Batch
from gradspectra_backend.problems import MEDIA_TYPE
from gradspectra_backend.schemas import ProblemDocument

REFERENCE = "#/components/schemas/{model}"
PROBLEM = {
    "description": "A problem document (RFC 9457).",
    "content": {MEDIA_TYPE: {"schema": {"$ref": REFERENCE.format(model="ProblemDocument")}}},
}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of `app`."""
    made = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    _, extra = models_json_schema([(Batch, "validation"), (ProblemDocument, "serialization")], ref_template=REFERENCE)
    schemas.update(extra["$defs"])
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer"},
        "session": {"type": "apiKey", "in": "cookie", "name": "gradspectra_session"},
    }
    made["security"] = [{"token": []}, {"session": []}, {}]
    for methods in made["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = PROBLEM
    return made


def install(app: FastAPI) -> None:
    """Make `app` serve this document at /openapi.json."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
