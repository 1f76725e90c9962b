"""What the framework finds wrong with an input, as a sentence: what it must be, and what it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradspectra_core.limits import shown

_MUST: dict[str, str] = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float", "int_parsing_size"), "must be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "must be a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "must be true or false"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be an object"),
    "finite_number": "must be finite",
    "string_type": "must be text",
    "list_type": "must be a list",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "literal_error": "must be {expected}",
}
_LENGTHS: dict[str, str] = {
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
}
_WHOLE: dict[str, str] = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "string_unicode": "must be valid Unicode, got a lone surrogate",
}
_SECRET = ("token", "secret")
"""Fields whose values are not shown."""


def sentence(error: Mapping[str, Any]) -> str:
    """Say what is wrong, without the name of the field. error: pydantic's, with type, loc, msg, input and ctx."""
    kind, given = error["type"], error.get("input")
    limits = {name: _plain(limit) for name, limit in error.get("ctx", {}).items()}
    if kind in _WHOLE:
        return _WHOLE[kind]
    if kind in _LENGTHS:
        return f"{_LENGTHS[kind].format(**limits)}, got {len(given) if given is not None else 'none'}"
    if kind in _MUST:
        must = _MUST[kind].format(**limits)
        return must if error["loc"][-1] in _SECRET else f"{must}, got {shown(given)}"
    return str(error["msg"]).removeprefix("Value error, ")


def where_json_ends(error: Mapping[str, Any]) -> str:
    """Say why a body is not JSON, and where. error: one of the framework's of type json_invalid."""
    reason = str(error.get("ctx", {}).get("error", "")).rstrip(".: ")
    return f"{reason or 'it breaks off'}, at character {error['loc'][-1]}"


def _plain(limit: Any) -> Any:
    """A bound without a fraction of zero."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit
