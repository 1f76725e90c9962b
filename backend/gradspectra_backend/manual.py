"""The interface for human readers: /docs, written from the OpenAPI document, and /problems; no script at all."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.responses import HTMLResponse

from gradspectra_backend.plain_pages import document
from gradspectra_backend.problems import KINDS, Problem


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[1]
    if "anyOf" in schema:
        return " or ".join(_type(entry) for entry in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(str(entry) for entry in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _rows(entries: list[tuple[str, str, str]]) -> str:
    rows = (
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td><td>{escape(text)}</td></tr>"
        for name, kind, text in entries
    )
    return f"<table>{''.join(rows)}</table>" if entries else ""


def _fields(schema: dict[str, Any]) -> list[tuple[str, str, str]]:
    required = schema.get("required", [])
    return [
        (name, _type(entry) + (", required" if name in required else ""), str(entry.get("description", "")))
        for name, entry in schema.get("properties", {}).items()
    ]


def _operation(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    parameters = [
        (entry["name"], f"{_type(entry['schema'])} in {entry['in']}", str(entry.get("description", "")))
        for entry in operation.get("parameters", [])
    ]
    parts = [f'<h3><span class="method">{method.upper()}</span><code>{escape(path)}</code></h3>']
    parts.append(f"<p>{escape(operation.get('description', operation.get('summary', '')))}</p>")
    parts.append(_rows(parameters))
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        name = _type(content.get("schema", {}))
        parts.append(f"<p>Body: <code>{escape(media_type)}</code> {escape(name)}</p>")
        parts.append(_rows(_fields(schemas.get(name, {}))))
    return f"<section>{''.join(parts)}</section>"


def render(openapi: dict[str, Any]) -> str:
    """The body of /docs: one section per call, under the headings of their tags."""
    schemas = openapi.get("components", {}).get("schemas", {})
    by_tag: dict[str, list[str]] = {}
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["other"])[0]
            by_tag.setdefault(tag, []).append(_operation(path, method, operation, schemas))
    parts = [f"<h1>{escape(openapi['info']['title'])} {escape(openapi['info']['version'])}</h1>"]
    parts.append(f"<p>{escape(openapi['info'].get('description', ''))}</p>")
    parts.append(
        '<p>As OpenAPI: <a href="/openapi.json">/openapi.json</a>. Errors: <a href="/problems">/problems</a>.</p>'
    )
    for tag, sections in by_tag.items():
        parts.append(f"<h2>{escape(tag.capitalize())}</h2>{''.join(sections)}")
    return "".join(parts)


def install(app: FastAPI) -> None:
    """Serve the pages."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    def docs() -> HTMLResponse:
        return document("gradspectra: the interface", render(app.openapi()))

    @router.get("/problems")
    def problems() -> HTMLResponse:
        rows = _rows([(name, str(kind.status), f"{kind.title}. {kind.remedy}") for name, kind in KINDS.items()])
        return document("gradspectra: problems", f"<h1>Problems</h1>{rows}")

    @router.get("/problems/{name}")
    def problem(name: str) -> HTMLResponse:
        kind = KINDS.get(name)
        if kind is None:
            raise Problem("not-found", f"there is no problem named {name[:100]!r}", remedy="/problems lists them all.")
        text = f"<h1>{escape(kind.title)}</h1><p>HTTP status {kind.status}.</p><p>{escape(kind.remedy)}</p>"
        return document(kind.title, text)

    app.include_router(router)
