"""Parameters of an address that its call does not know: refused, since a typing error would give another answer."""

from __future__ import annotations

from difflib import get_close_matches

from fastapi import Request, params
from fastapi.dependencies.utils import get_flat_params
from fastapi.routing import APIRoute

from gradspectra_backend.problems import LONGEST_FIELD, Problem


def refuse_unknown(request: Request) -> None:
    """Raise Problem 422 for the first parameter that the call does not take, with the nearest that it does."""
    if not request.scope.get("query_string"):
        return
    route = request.scope.get("route")  # none on the short way, whose call takes nothing
    known = _taken_by(route) if isinstance(route, APIRoute) else ()
    for name in request.query_params:
        if name not in known:
            raise _unknown(name[:LONGEST_FIELD], known)


def _unknown(name: str, known: tuple[str, ...]) -> Problem:
    near = [one for one in known if name and one.startswith(name)] or get_close_matches(name, known, 1)
    field = name or "query"
    detail = f"{field}: is not known here" + (f"; did you mean {near[0]}?" if near else "")
    taken = f"This call takes {', '.join(known)}." if known else "This call takes nothing behind a question mark."
    return Problem("bad-request", detail, field=field, remedy=taken)


def _taken_by(route: APIRoute) -> tuple[str, ...]:
    """Names of the parameters that a call takes from its address."""
    others = (params.Path, params.Header, params.Cookie)  # of a model of parameters the members are of no such class
    found = get_flat_params(route.dependant)
    return tuple(sorted(field.alias for field in found if not isinstance(field.field_info, others)))
