"""The forms that numbers are answered in: JSON, the binary form, an Arrow stream; and ETags, to not send them twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
from fastapi import Request
from gradspectra_core.container import pack_parts
from gradspectra_core.pages import wide_bytes
from gradspectra_core.records import Bool
from gradspectra_core.views import LayerSeries, Series
from numpy.typing import NDArray
from starlette.responses import Response

from gradspectra_backend.answers import dumps, layers_object, narrowed, series_object, wide_dumps
from gradspectra_backend.problems import Problem

JSON = "application/json"
ARRAYS = "application/vnd.gradspectra.arrays"
ARROW = "application/vnd.apache.arrow.stream"
FORMS = (JSON, ARRAYS, ARROW)
_VERSION = version("gradspectra")
"""Part of what an ETag is made of, where that is not the body itself: another version may write it in another way."""

Body = bytes | memoryview
UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "What `If-None-Match` names is still the answer."}}
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {
            form: {"schema": {"type": "string", "contentMediaType": form, "format": "binary"}}
            for form in (ARRAYS, ARROW)
        }
    },
    **UNCHANGED,
}
"""What the document says of calls that answer in these forms."""


def answer_series(request: Request, series: Series, steps: NDArray[Any], available: list[str]) -> Response:
    """A series in the form that is asked for. series.x: where `steps` lie on series.axis."""
    form = form_of(request)
    place = _place(series.axis, series.x, steps)
    if form == ARROW:
        from gradspectra_backend import arrow

        return unchanged_or(request, arrow.stream(arrow.series_table(series, place)), form)
    more = {"available": available}
    if form == ARRAYS:
        rows = list(series.series.values())
        meta = {"kind": "series", "axis": series.axis, "names": list(series.series), **more, "damaged": series.damaged}
        return unchanged_or(request, _packed(meta, place, rows, ("mean", "min", "max", "last", "nonfinite")), form)
    return unchanged_or(request, dumps(series_object(series) | _steps_object(series.axis, steps) | more), form)


def answer_layers(request: Request, values: LayerSeries, steps: NDArray[Any]) -> Response:
    """Layer values in the form that is asked for. values.x: where `steps` lie on values.axis."""
    form = form_of(request)
    place = _place(values.axis, values.x, steps)
    texts = {name: list(getattr(values, name)) for name in ("layers", "roles", "depths")}
    about = {"kind": "layers", "statistic": values.statistic, "axis": values.axis, **texts}
    meta = about | {"damaged": values.damaged, "retired": values.retired}

    def body() -> Body:
        if form == ARROW:
            from gradspectra_backend import arrow

            return arrow.stream(arrow.layers_table(values, place))
        if form == ARRAYS:
            return _packed(meta, place, values, ("mean", "min", "max", "nonfinite"))
        return wide_dumps(layers_object(values) | _steps_object(values.axis, steps))

    return _answered(request, _tag_of_layers(form, meta, place, values), body, form)


def form_of(request: Request) -> str:
    """The form that the Accept header prefers, JSON where it does not care; raises Problem 406 for others."""
    accept = ", ".join(request.headers.getlist("accept")) or "*/*"
    for wanted in by_preference(accept):
        if wanted in ("*/*", "application/*"):
            return JSON
        if wanted in FORMS:
            if wanted == ARROW:
                require_pyarrow(ARROW)
            return wanted
    raise Problem("not-acceptable", f"Accept: this is offered as {', '.join(FORMS)}, not as {accept[:80]!r}")


def require_pyarrow(what: str) -> None:
    """Raise Problem 406 that names the extra where pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise Problem(
            "not-acceptable",
            f"{what} needs pyarrow, which is not installed on this server",
            remedy="Run pip install 'gradspectra[export]' where the server runs, or ask for another form.",
        )


def unchanged_or(request: Request, body: Body, media_type: str) -> Response:
    """The answer with its ETag, a digest of the body; 304 without a body where the caller has just this one."""
    return _answered(request, f'"{hashlib.sha256(body).hexdigest()[:32]}"', lambda: body, media_type)


def _answered(request: Request, tag: str, body: Callable[[], Body], media_type: str) -> Response:
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Accept, Authorization, Cookie"}
    if has_already(request, tag):
        return Response(status_code=304, headers=headers)
    return Response(body(), media_type=media_type, headers=headers)


def has_already(request: Request, tag: str) -> bool:
    """Whether If-None-Match names what has this ETag, strong or weak, or whatever there is."""
    known = ",".join(request.headers.getlist("if-none-match")).split(",")
    return bool({tag, f"W/{tag}", "*"} & {entry.strip() for entry in known})


def _tag_of_layers(form: str, meta: dict[str, Any], place: Mapping[str, NDArray[Any]], values: LayerSeries) -> str:
    """An ETag of layer values before they are written: a digest of all that is written, arrays that are one once."""
    arrays = {f"place.{name}": array for name, array in place.items()}
    arrays |= {name: getattr(values, name) for name in ("mean", "min", "max")}
    if values.nonfinite.any():
        arrays["nonfinite"] = values.nonfinite
    if not values.present.all():
        arrays["present"] = np.packbits(values.present)
    own = {id(array): narrowed(array) if array.dtype == np.float64 else array for array in arrays.values()}
    order = list(own)
    shapes = {name: [order.index(id(a)), own[id(a)].dtype.str, *a.shape] for name, a in arrays.items()}
    digest = hashlib.sha256(dumps([_VERSION, form, meta, shapes]))
    for array in own.values():
        digest.update(np.ascontiguousarray(array).data)
    return f'"{digest.hexdigest()[:32]}"'


def by_preference(accept: str) -> list[str]:
    """What a header such as Accept names, in lower case, the best first; what it weighs with 0 is left out."""
    ranges = []
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        try:
            ranges.append((float(quality), name))
        except ValueError:
            continue
    return [name for quality, name in sorted(ranges, key=lambda entry: -entry[0]) if quality > 0]


def _place(axis: str, x: NDArray[Any], steps: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {"step": steps} if axis == "step" else {"step": steps, axis: x}


def _steps_object(axis: str, steps: NDArray[Any]) -> dict[str, Any]:
    return {} if axis == "step" else {"steps": np.ascontiguousarray(steps)}


def _packed(meta: dict[str, Any], place: Mapping[str, NDArray[Any]], rows: Any, parts: tuple[str, ...]) -> Body:
    """The binary form: arrays (R, N) with a presence bitmap, left out where nothing is missing."""

    def stacked(name: str) -> NDArray[Any]:
        if not isinstance(rows, list):
            return np.asarray(getattr(rows, name))
        return np.stack([getattr(row, name) for row in rows]) if rows else np.empty((0, len(place["step"])))

    blocks = {f"place.{name}": values for name, values in place.items()}
    kinds = {name: np.int64 if name == "nonfinite" else np.float64 for name in parts}
    blocks |= {name: stacked(name).astype(kind, copy=False) for name, kind in kinds.items()}
    present: Bool = stacked("present").astype(np.bool_)
    if not present.all():
        blocks["present"] = np.packbits(present, bitorder="little")
    return wide_bytes(pack_parts(meta, blocks))
