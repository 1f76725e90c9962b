"""What the store answers, as JSON: large arrays fast, NaN and ±inf as strings, null only for what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from gradspectra_core.jsonform import json_array, json_number
from gradspectra_core.pages import wide_bytes
from gradspectra_core.records import Bool
from gradspectra_core.views import Buckets, LayerSeries, Series, Spectrum
from numpy.typing import NDArray
from starlette.responses import Response

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
_AT_ONCE = 1 << 14
"""So many numbers are written at a time: their text then lies in memory that was used before."""


class Written:
    """A JSON value as text, in parts that follow each other."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts


def dumps(value: Any) -> bytes:
    """JSON of plain objects and arrays; an array's missing and non-finite entries become null."""
    return orjson.dumps(value, default=_default, option=OPTIONS)


def wide_dumps(members: dict[str, Any]) -> bytes | memoryview:
    """As `dumps`, of an object in which large members may be written already; these come last."""
    written = {name: value for name, value in members.items() if isinstance(value, Written)}
    parts = [dumps({name: value for name, value in members.items() if name not in written})[:-1]]
    for name, value in written.items():
        parts += [b"," if len(parts[0]) > 1 or len(parts) > 1 else b"", dumps(name), b":", *value.parts]
    return wide_bytes([*parts, b"}"])


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer with `value` as its JSON; the numbers in it are finite or already strings."""
    return Response(dumps(value), status, media_type="application/json", headers=headers)


def _default(value: Any) -> Any:
    if isinstance(value, Written):
        return orjson.Fragment(b"".join(value.parts))
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).tolist()
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot be sent as JSON: {type(value).__name__}")


def numbers(values: NDArray[Any], present: Bool) -> Any:
    """One row of numbers for `dumps`: the array itself where all are finite, else a list with the special ones named.

    values, present: (N,). Missing entries are None, the others "NaN", "Infinity" and "-Infinity".
    """
    if present.all() and np.isfinite(values).all():
        return np.ascontiguousarray(values)
    return json_array(values, present)


def plain(value: Any) -> Any:
    """Any nested object of ours with its NaN and ±inf as strings, and integers beyond 64 bits too.

    A lone surrogate in a text, as in the name of a file that is no UTF-8, becomes a question mark.
    """
    if isinstance(value, str):
        return value if value.isascii() else value.encode(errors="replace").decode()
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, dict):
        return {plain(str(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def series_object(series: Series) -> dict[str, Any]:
    """The `series` object of the interface."""
    return {
        "axis": series.axis,
        "x": np.ascontiguousarray(series.x),
        "series": {name: _buckets(buckets) for name, buckets in series.series.items()},
        "damaged": series.damaged,
    }


def _buckets(buckets: Buckets) -> dict[str, Any]:
    present = buckets.present
    rows = {name: numbers(getattr(buckets, name), present) for name in ("mean", "min", "max", "last")}
    return rows | {"nonfinite": np.ascontiguousarray(buckets.nonfinite)}


def layers_object(values: LayerSeries) -> dict[str, Any]:
    """The `layer values` object of the interface, with roles and depths beside the names.

    Numbers that are all float32 are as short as they read back the same in float32.
    """
    arrays = {name: getattr(values, name) for name in ("mean", "min", "max")}
    own = {id(array): array for array in arrays.values()}  # of single steps all three are one array
    written = {key: _rows(array, values.present) for key, array in own.items()}
    return {
        "statistic": values.statistic,
        "axis": values.axis,
        "x": np.ascontiguousarray(values.x),
        "layers": list(values.layers),
        "roles": list(values.roles),
        "depths": list(values.depths),
        **{name: written[id(array)] for name, array in arrays.items()},
        "nonfinite": _counts(values.nonfinite),
        "damaged": values.damaged,
        "retired": values.retired,
    }


def narrowed(values: NDArray[np.float64]) -> NDArray[Any]:
    """The same numbers, (R, N), as float32 where they all are that, as most statistics are; else as they were."""
    with np.errstate(over="ignore"):
        for rows in (values[:1], values):  # the first row tells most
            narrow = rows.astype(np.float32)
            other = narrow != rows
            if other.any() and not np.isnan(rows[other]).all():
                return values
    return narrow


def _rows(values: NDArray[Any], present: Bool) -> Written:
    """Rows of numbers (R, N) with the special ones named, null where nothing is present."""
    if not present.all():
        values = np.where(present, values, np.nan)
    values = narrowed(values)
    special = present & ~np.isfinite(values)
    odd = special.any(axis=1)
    return _listed(
        _named(values[begin], special[begin]) if odd[begin] else dumps(values[begin:end])[1:-1]
        for begin, end in _portions(odd, values.shape[1])
    )


def _portions(odd: Bool, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows to write at once, the odd ones by themselves."""
    most = max(_AT_ONCE // max(width, 1), 1)
    begin = 0
    for place in [*np.flatnonzero(odd).tolist(), len(odd)]:
        yield from ((at, min(at + most, place)) for at in range(begin, place, most))
        if place < len(odd):
            yield place, place + 1
        begin = place + 1


def _named(row: NDArray[Any], special: Bool) -> bytes:
    """A row, of whose numbers the special ones are written as nulls otherwise."""
    texts = dumps(np.ascontiguousarray(row))[1:-1].split(b",")
    for at in np.flatnonzero(special).tolist():
        texts[at] = dumps(json_number(float(row[at])))
    return b"[" + b",".join(texts) + b"]"


def _counts(counts: NDArray[np.int64]) -> Written:
    if counts.any():
        none = np.zeros(len(counts), np.bool_)
        return _listed(dumps(counts[begin:end])[1:-1] for begin, end in _portions(none, counts.shape[1]))
    row = b"[" + b",".join([b"0"] * counts.shape[1]) + b"]"
    return Written(b"[" + b",".join([row] * counts.shape[0]) + b"]")


def _listed(rows: Iterator[bytes]) -> Written:
    parts = [part for row in rows for part in (b",", row)]
    return Written(b"[", *parts[1:], b"]")


def spectrum_object(spectrum: Spectrum) -> dict[str, Any]:
    """The `spectrum` object of the interface."""
    values = spectrum.singular_values
    return {
        "layer": spectrum.layer,
        "of": spectrum.of,
        "step": spectrum.step,
        "attempt": spectrum.attempt,
        "method": spectrum.method,
        "rows": spectrum.rows,
        "columns": spectrum.columns,
        "index": np.ascontiguousarray(spectrum.index),
        "singular_values": numbers(values, np.ones(values.shape, dtype=np.bool_)),
        **{
            name: json_number(getattr(spectrum, name))
            for name in ("nuclear", "frobenius_sq", "operator", "fourth", "entropy")
        },
        "k90": spectrum.k90,
        "k99": spectrum.k99,
    }
