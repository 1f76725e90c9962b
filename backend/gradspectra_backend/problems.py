"""Errors as RFC 9457 problem documents: a stable type, what is wrong, which field, and what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from gradspectra_backend import wrong_inputs
from gradspectra_backend.methods import allowed
from gradspectra_backend.plain_pages import problem_page, wants_page

MEDIA_TYPE = "application/problem+json"
TYPE_BASE = "/problems/"
LONGEST_FIELD = 200


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem. remedy: what to do where the problem itself says nothing closer."""

    status: int
    title: str
    remedy: str


KINDS: dict[str, Kind] = {
    "bad-request": Kind(
        422, "The request cannot be used", "Correct the named field; /docs lists what each call takes."
    ),
    "bad-batch": Kind(422, "The batch cannot be used", "Correct the named field; nothing of the batch was stored."),
    "malformed-body": Kind(400, "The body cannot be read", "Send the whole body in the form its headers announce."),
    "wrong-host": Kind(400, "Unknown host name", "Call the server by a name in GRADSPECTRA_ALLOWED_HOSTS."),
    "unauthorized": Kind(
        401, "No valid token", "Send `Authorization: Bearer gs_…`; make one by `gradspectra token create`."
    ),
    "forbidden": Kind(403, "Not allowed", "Use a token with the scope that the detail names."),
    "not-found": Kind(404, "Nothing here", "The list of runs leads to every page; /docs lists the calls there are."),
    "unknown-run": Kind(404, "No such run", "GET /api/v1/runs lists the runs; a deleted run must be made anew."),
    "unknown-session": Kind(404, "No such session", "Start the run again by POST /api/v1/runs with `resume`."),
    "unknown-layer": Kind(404, "No such layer", "GET /api/v1/runs/{run}/layers lists the layers."),
    "unknown-statistic": Kind(404, "No such statistic", "Use one of the names in the detail."),
    "unknown-figure": Kind(404, "No such figure", "Use one of the names in the detail."),
    "unknown-alert": Kind(404, "No such alert", "GET /api/v1/alerts lists the alerts."),
    "unknown-token": Kind(404, "No such token", "GET /api/v1/tokens lists the tokens."),
    "unknown-channel": Kind(404, "No such channel", "GET /api/v1/channels lists the channels."),
    "method-not-allowed": Kind(405, "Method not allowed here", "See the Allow header, and /docs."),
    "not-acceptable": Kind(406, "Not offered in this form", "Ask for one of the forms that the detail names."),
    "too-slow": Kind(
        408,
        "The body comes too slowly",
        "Send it again, as the agent does by itself; over a slow line, send less at once.",
    ),
    "sequence-gap": Kind(409, "A batch is missing", "Send the batch with the number in `expected` first."),
    "conflict": Kind(409, "Not possible in this state", "Read the object again and decide anew."),
    "too-large": Kind(413, "The body is too large", "Send less at once; GRADSPECTRA_MAX_BODY bounds a batch."),
    "unsupported-encoding": Kind(415, "Content-Encoding not understood", "Send it as it is, or with gzip."),
    "unsupported-media-type": Kind(415, "Content-Type not understood", "Use a type that the detail names."),
    "too-many-requests": Kind(429, "Too many attempts", "Wait as long as Retry-After says."),
    "undeliverable": Kind(502, "The channel did not take it", "Mend the channel's address, then send the test again."),
    "internal": Kind(500, "The server failed", "Look into the server's log; the same request may work again."),
    "damaged": Kind(
        500,
        "Some numbers cannot be read back",
        "Add skip_damaged=true to leave them out; `gradspectra doctor` names them.",
    ),
    "unavailable": Kind(503, "Not available now", "Try again; the agent does so by itself and keeps its records."),
    "storage-full": Kind(
        507, "No space left to store", "Free space on the server's disk; the agent keeps its records."
    ),
}


class Problem(Exception):
    """A problem to answer with. name: a key of KINDS; extra: further members of the document, such as `expected`."""

    def __init__(
        self,
        name: str,
        detail: str,
        *,
        field: str | None = None,
        remedy: str | None = None,
        extra: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.name = name
        self.detail = detail
        self.field = field
        self.remedy = remedy
        self.extra = extra or {}
        self.headers = headers or {}

    @property
    def kind(self) -> Kind:
        """The kind it is of; a KeyError here is a bug."""
        return KINDS[self.name]

    def document(self) -> dict[str, Any]:
        """The problem document as plain JSON."""
        return {
            "type": TYPE_BASE + self.name,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "field": self.field,
            "remedy": self.remedy or self.kind.remedy,
            **self.extra,
        }

    def response(self) -> Response:
        """The problem as an HTTP answer."""
        body = orjson.dumps(self.document(), default=str)
        return Response(body, self.kind.status, media_type=MEDIA_TYPE, headers=self.headers)

    def answer(self, scope: Scope) -> Response:
        """The problem as the one who asks can read it: a small page where a browser was sent to the address itself."""
        if wants_page(Headers(scope=scope).get("accept")):
            remedy = self.remedy or self.kind.remedy
            response: Response = problem_page(self.kind.status, self.kind.title, self.detail, remedy)
            response.headers.update(self.headers)
        else:
            response = self.response()
        response.headers["Vary"] = "Accept"
        return response


_BY_STATUS = {400: "malformed-body", 401: "unauthorized", 403: "forbidden", 404: "not-found", 405: "method-not-allowed"}
_BY_STATUS |= {413: "too-large", 415: "unsupported-media-type", 429: "too-many-requests", 503: "unavailable"}


UNREADABLE = "the body is not JSON in UTF-8, or holds numbers of thousands of digits or thousands of levels"
_UNREADABLE = "There was an error parsing the body"
"""What the framework says of a body that its JSON reader gives up."""


def from_http(error: HTTPException) -> Problem:
    """The problem that an HTTPException of the framework stands for."""
    name = _BY_STATUS.get(error.status_code, "internal" if error.status_code >= 500 else "bad-request")
    detail = UNREADABLE if error.detail == _UNREADABLE else str(error.detail)
    return Problem(name, detail, headers=dict(error.headers or {}))


def from_validation(error: RequestValidationError, content_type: str = "") -> Problem:
    """The first thing wrong with a request, named by its field; the rest are listed in `errors`.

    content_type: that of the request, which is what is wrong where the framework left the body unread for it.
    """
    if isinstance(error.body, bytes):
        said = f"Content-Type must be application/json, got {content_type[:80]!r}"
        return Problem("unsupported-media-type", said, field="Content-Type")
    found = error.errors()
    if found[0]["type"] == "json_invalid":
        return Problem("malformed-body", f"the body is not JSON: {wrong_inputs.where_json_ends(found[0])}")
    entries = [{"field": _field_of(entry["loc"]), "detail": wrong_inputs.sentence(entry)} for entry in found]
    first = entries[0]
    extra = {"errors": entries[:20]} if len(entries) > 1 else {}
    return Problem("bad-request", f"{first['field']}: {first['detail']}", field=first["field"], extra=extra)


def _field_of(place: tuple[Any, ...]) -> str:
    """The name of what is wrong; that of a member which nobody knows may be of any length."""
    name = ".".join(map(str, place[1:])) or str(place[0])
    return name if len(name) <= LONGEST_FIELD else name[:LONGEST_FIELD] + "…"


def _nothing_at(path: str) -> Problem:
    """The problem of an address that there is not; none is led to another, where a body could be lost on the way."""
    bare = path.rstrip("/")
    remedy = f"Addresses here have no slash at their end: try {bare[:200]}." if bare and bare != path else None
    return Problem("not-found", f"there is nothing at {path[:200]}", remedy=remedy)


def _not_allowed(request: Request, error: HTTPException) -> Problem:
    """The problem of a method that an address does not take."""
    methods = allowed(request) or dict(error.headers or {}).get("Allow", "")
    detail = f"{request.method} is not offered at {request.url.path[:200]}, but {methods}"
    return Problem("method-not-allowed", detail, headers={"Allow": methods})


def install(app: FastAPI) -> None:
    """Make `app` answer errors with problem documents; those that nobody foresaw are door.py's."""

    async def on_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return error.answer(request.scope)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 204:  # nothing to say is no problem
            return Response(status_code=204)
        if error.status_code == 404:  # no route has the path, or no file
            return _nothing_at(request.url.path).answer(request.scope)
        problem = _not_allowed(request, error) if error.status_code == 405 else from_http(error)
        return problem.answer(request.scope)

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return from_validation(error, request.headers.get("content-type", "")).answer(request.scope)

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)
