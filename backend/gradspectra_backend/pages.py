"""The page and its files: one index for every address of the page, files with ETags, Plotly's script gzipped once."""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from gradspectra_frontend import assets
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from gradspectra_backend.forms import by_preference, has_already

PAGES = ("/", "/runs", "/runs/{path:path}", "/compare", "/alerts", "/settings", "/login")
FOREVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"
"""Keep a copy, but ask by its ETag whether it is still good: an update of the server shows at once."""


class Files(StaticFiles):
    """Static files that a browser keeps; those whose address does not name their contents it asks about again."""

    def __init__(self) -> None:
        super().__init__(directory=assets.static_dir(), check_dir=False)
        self._kept: dict[str, Response] = {}

    async def get_response(self, path: str, scope: Scope) -> Response:
        """As Starlette's, with Cache-Control; a file at an address that names its contents is read once.

        A browser that is new here asks for all of them at once, and reading each takes longer than all else.
        """
        name, fixed = assets.static_path(path)
        if fixed and path in self._kept:
            return self._kept[path]
        response = await super().get_response(name, scope)
        response.headers["Cache-Control"] = FOREVER if fixed else ASK_AGAIN
        if fixed and scope["method"] == "GET" and isinstance(response, FileResponse):
            headers = {name: response.headers[name] for name in ("Cache-Control", "ETag", "Last-Modified")}
            body = await run_in_threadpool(Path(response.path).read_bytes)
            response = self._kept[path] = Response(body, headers=headers, media_type=response.media_type)
        return response


@cache
def _plotly() -> tuple[bytes, str]:
    packed = gzip.compress(assets.plotly_script().read_bytes(), 6, mtime=0)
    return packed, f'"{hashlib.sha256(packed).hexdigest()[:16]}"'


def prepare() -> None:
    """Pack Plotly's script, which takes as long as a browser takes to run it: the first one is not to wait for both."""
    _plotly()


def _cached(request: Request, body: bytes, etag: str, media_type: str, cache_control: str) -> Response:
    headers = {"ETag": etag, "Cache-Control": cache_control}
    if has_already(request, etag):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)


def _page(request: Request) -> Response:
    body = assets.index_html().encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
    return _cached(request, body, etag, HTMLResponse.media_type + "; charset=utf-8", ASK_AGAIN)


def _script(request: Request) -> Response:
    packed, etag = _plotly()
    if "gzip" not in by_preference(", ".join(request.headers.getlist("accept-encoding"))):
        response = _cached(request, gzip.decompress(packed), etag[:-1] + '-plain"', "text/javascript", FOREVER)
    else:
        response = _cached(request, packed, etag, "text/javascript", FOREVER)
        if response.status_code == 200:
            response.headers["Content-Encoding"] = "gzip"
    response.headers["Vary"] = "Accept-Encoding"
    return response


def install(app: FastAPI) -> None:
    """Serve the page below all routes of the interface."""
    router = APIRouter(include_in_schema=False)
    for path in PAGES:
        router.add_api_route(path, _page, methods=["GET"])
    router.add_api_route(assets.plotly_url(), _script, methods=["GET"])
    app.include_router(router)
    app.mount("/static", Files(), name="static")
