"""Typed reading of JSON values that came from outside; each refusal names the field and the value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.limits import Limits, WireError, shown
from gradspectra_core.records import Gap
from gradspectra_core.roles import depth_of, role_of

MAX_INT64 = (1 << 63) - 1
MAX_SESSION = 64


def check_name(name: object, field: str, longest: int) -> str:
    """Return `name` if it is a string of 1 to `longest` printable characters, else raise WireError."""
    if not isinstance(name, str):
        raise WireError(field, f"must be a string, got {shown(name)}")
    if not 1 <= len(name) <= longest:
        raise WireError(field, f"must have 1 to {longest} characters, got {len(name)}")
    if not name.isprintable():
        raise WireError(field, f"must hold printable characters only, got {shown(name)}")
    return name


def check_names(names: object, field: str, longest: int, most: int) -> tuple[str, ...]:
    """Return a list of at most `most` different names as a tuple, else raise WireError."""
    found = tuple(expect_list(names, field, most))
    try:
        return _checked(found, field, longest)
    except TypeError:  # one of them cannot be hashed, so it is no string
        for name in found:
            check_name(name, field, longest)
        raise


@lru_cache(maxsize=64)
def _checked(names: tuple[Any, ...], field: str, longest: int) -> tuple[str, ...]:
    """Check names; those of the batches before, which a session sends again and again, are known to be good."""
    for name in names:
        check_name(name, field, longest)
    check_unique(names, field)
    return names


def check_unique(names: Iterable[str], field: str) -> None:
    """Raise WireError for a name that occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise WireError(field, f"must be unique, {shown(name)} occurs twice")
        seen.add(name)


def expect_object(value: object, field: str) -> dict[str, Any]:
    """Return `value` if it is a JSON object, else raise WireError."""
    if not isinstance(value, dict):
        raise WireError(field, f"must be an object, got {shown(value)}")
    return value


def expect_list(value: object, field: str, most: int) -> list[Any]:
    """Return `value` if it is a list of at most `most` entries, else raise WireError."""
    if not isinstance(value, list):
        raise WireError(field, f"must be a list, got {shown(value)}")
    if len(value) > most:
        raise WireError(field, f"must have at most {most} entries, got {len(value)}")
    return value


def expect_int(value: object, field: str, least: int, most: int = MAX_INT64) -> int:
    """Return `value` if it is a whole number in [least, most] (never a boolean), else raise WireError."""
    if type(value) is not int:
        raise WireError(field, f"must be a whole number, got {shown(value)}")
    if not least <= value <= most:
        raise WireError(field, f"must be between {least} and {most}, got {shown(value)}")
    return value


def layer_table_from_json(value: object, limits: Limits, field: str = "layer_table") -> LayerTable | None:
    """Read a layer table; None stays None. An entry needs `name` alone: role and depth are told from it.

    Raises WireError naming the entry.
    """
    if value is None:
        return None
    entries = expect_list(value, field, limits.max_layers)
    layers = [_layer(entry, f"{field}[{index}]", limits) for index, entry in enumerate(entries)]
    check_unique((layer.name for layer in layers), f"{field}.name")
    return LayerTable(tuple(layers))


def _layer(value: object, field: str, limits: Limits) -> Layer:
    entry = expect_object(value, field)
    name = check_name(entry.get("name"), f"{field}.name", limits.max_name)
    extents = expect_list(entry.get("shape", []), f"{field}.shape", 8)
    shape = tuple(expect_int(extent, f"{field}.shape", 0) for extent in extents)
    role = check_name(entry["role"], f"{field}.role", 64) if "role" in entry else role_of(name, shape)
    depth = expect_int(entry["depth"], f"{field}.depth", -1) if "depth" in entry else depth_of(name)
    return Layer(name, role, depth, shape)


def gaps_from_json(value: object, limits: Limits) -> tuple[Gap, ...]:
    """Read the gaps of a batch; what they say is judged by `check_batch`. Raises WireError naming the entry."""
    gaps = []
    for index, item in enumerate(expect_list(value, "gaps", limits.max_gaps)):
        field = f"gaps[{index}]"
        entry = expect_object(item, field)
        first = expect_int(entry.get("first"), f"{field}.first", 1)
        last = expect_int(entry.get("last"), f"{field}.last", first)
        what = check_name(entry.get("what"), f"{field}.what", 16)
        gaps.append(Gap(first, last, what, check_name(entry.get("reason"), f"{field}.reason", limits.max_name)))
    return tuple(gaps)


def gaps_to_json(gaps: Sequence[Gap]) -> list[dict[str, object]]:
    """Return gaps as plain JSON objects."""
    return [{"first": gap.first, "last": gap.last, "what": gap.what, "reason": gap.reason} for gap in gaps]
