"""What the store answers, as JSON: large arrays fast, NaN and ±inf as strings, null only for what is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from gradspectra_core.jsonform import json_array, json_number
from gradspectra_core.records import Bool
from gradspectra_core.views import Buckets, LayerSeries, Series, Spectrum
from numpy.typing import NDArray
from starlette.responses import Response

OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def dumps(value: Any) -> bytes:
    """JSON of plain objects and arrays; an array's missing and non-finite entries become null."""
    return orjson.dumps(value, default=_default, option=OPTIONS)


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer with `value` as its JSON; the numbers in it are finite or already strings."""
    return Response(dumps(value), status, media_type="application/json", headers=headers)


def _default(value: Any) -> Any:
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
    """Any nested object of ours with its NaN and ±inf as strings, and integers beyond 64 bits too."""
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
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
    """The `layer values` object of the interface, with roles and depths beside the names."""
    arrays = {name: getattr(values, name) for name in ("mean", "min", "max")}
    written: dict[int, Any] = {}
    for array in arrays.values():
        if id(array) not in written:  # of single steps all three are one array
            often = sum(other is array for other in arrays.values()) > 1
            rows = _rows(array, values.present)
            written[id(array)] = orjson.Fragment(dumps(rows)) if often else rows
    return {
        "statistic": values.statistic,
        "axis": values.axis,
        "x": np.ascontiguousarray(values.x),
        "layers": list(values.layers),
        "roles": list(values.roles),
        "depths": list(values.depths),
        **{name: written[id(array)] for name, array in arrays.items()},
        "nonfinite": np.ascontiguousarray(values.nonfinite) if values.nonfinite.any() else _zeros(values.mean.shape),
        "damaged": values.damaged,
        "retired": values.retired,
    }


def _rows(values: NDArray[Any], present: Bool) -> Any:
    if values.size and present.all() and np.isfinite(values).all():
        return np.ascontiguousarray(values)
    return [numbers(row, there) for row, there in zip(values, present, strict=True)]


def _zeros(shape: tuple[int, ...]) -> orjson.Fragment:
    row = b"[" + b",".join([b"0"] * shape[1]) + b"]"
    return orjson.Fragment(b"[" + b",".join([row] * shape[0]) + b"]")


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
