"""What text and JSON from outside may be stored: bounded, and in characters that both databases hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gradspectra_core.limits import shown

from gradspectra_store.errors import BadRequest
from gradspectra_store.schema import MAX_NAME

MAX_JSON = 256 * 1024
MAX_NOTES = 64 * 1024
MAX_TAGS = 64
MAX_DEPTH = 100
"""Objects and lists inside of each other: what writes answers as JSON goes no deeper than 254."""


def clean_text(field: str, value: object, *, limit: int = MAX_NAME, least: int = 1) -> str:
    """Return `value` as it is, if it is text of `least` to `limit` characters; raises BadRequest naming `field`."""
    if not isinstance(value, str):
        raise BadRequest(field, f"must be text, got {shown(value)}")
    if not least <= len(value) <= limit:
        raise BadRequest(field, f"must have {least} to {limit} characters, got {len(value)}")
    problem = unstorable(value)
    if problem:
        raise BadRequest(field, problem)
    return value


def unstorable(text: str) -> str | None:
    """Say why no database holds this text, or None where both do."""
    if "\x00" in text:
        return "must not contain the character NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "must be valid Unicode, got a lone surrogate"
    return None


def clean_json(field: str, value: object) -> dict[str, Any]:
    """Return `value` if it is a JSON object of at most 256 KiB and 100 levels; raises BadRequest naming `field`."""
    if not isinstance(value, Mapping):
        raise BadRequest(field, f"must be an object, got {shown(value)}")
    try:
        size = len(json.dumps(dict(value)))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRequest(field, f"must hold plain JSON values only ({error})") from error
    if size > MAX_JSON:
        raise BadRequest(field, f"must be at most {MAX_JSON} bytes as JSON, got {size}")
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inside = (entry for one in level for entry in (one.values() if isinstance(one, Mapping) else one))
        level = [entry for entry in inside if isinstance(entry, Mapping | list | tuple)]
    if level:
        raise BadRequest(field, f"must have at most {MAX_DEPTH} objects and lists inside of each other")
    return dict(value)


def clean_tags(value: Sequence[str]) -> list[str]:
    """Return the tags once each, in order; raises BadRequest for too many or too long ones."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise BadRequest("tags", f"must be a list of texts, got {shown(value)}")
    if len(value) > MAX_TAGS:
        raise BadRequest("tags", f"must be at most {MAX_TAGS}, got {len(value)}")
    return sorted({clean_text("tags", tag) for tag in value})


def clean_count(field: str, value: object, *, least: int = 0, most: int = 2**53) -> int:
    """Return `value` if it is a whole number in [least, most]; raises BadRequest naming `field`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadRequest(field, f"must be a whole number from {least} to {most}, got {shown(value)}")
    return value


def clean_flag(field: str, value: object) -> bool:
    """Return `value` if it is true or false; raises BadRequest naming `field`."""
    if not isinstance(value, bool):
        raise BadRequest(field, f"must be true or false, got {shown(value)}")
    return value
