"""Checks what users hand to the Recorder, and brings it into the form of a record."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from gradspectra_core.identity import matrix_shape
from gradspectra_core.layers import Layer, LayerTable
from gradspectra_core.limits import DEFAULT_LIMITS
from gradspectra_core.records import SPECTRUM_OF
from gradspectra_core.roles import depth_of, role_of
from gradspectra_core.spectrum import aggregates, drawn_indices
from gradspectra_core.statistics import SCALARS, STATISTICS
from numpy.typing import NDArray

from gradspectra.arguments import is_text, shown, whole
from gradspectra.record import SpectrumRecord, StepRecord

Spectra = Mapping[str | tuple[str, str], Any]
"""Layer name, or (layer name, "gradient" | "weight" | "update") → matrix or singular values."""

COUNTS = frozenset(name for name, entry in SCALARS.items() if entry.dtype == "int64")
"""Scalars that are whole numbers; all others are float64."""
COUNT_STATISTICS = frozenset(name for name, entry in STATISTICS.items() if entry.dtype == "int64")
"""Layer statistics that are whole numbers; all others are float32."""
RENAMED = {"lr": "learning_rate"}
MAX_INT64 = (1 << 63) - 1


def layer_table(layers: Sequence[str | tuple[str, Sequence[int]] | Layer]) -> LayerTable:
    """Build the table of a recorder's layers. Raises TypeError or ValueError that names the entry."""
    if isinstance(layers, str | bytes) or not isinstance(layers, Collection) or getattr(layers, "ndim", 1) != 1:
        what = "the string " if isinstance(layers, str) else ""
        raise TypeError(f"layers must be a list of names, got {what}{shown(layers)}")
    if isinstance(layers, Mapping):
        raise TypeError("layers must be a list of names or (name, shape) pairs, got a mapping; give its items()")
    if len(layers) > DEFAULT_LIMITS.max_layers:
        raise ValueError(f"layers must be at most {DEFAULT_LIMITS.max_layers}, got {len(layers)}")
    return LayerTable.of(_layer(entry) for entry in layers)


def _layer(entry: object) -> Layer:
    if isinstance(entry, Layer):
        return entry
    name, shape = entry if isinstance(entry, tuple) and len(entry) == 2 else (entry, ())
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > DEFAULT_LIMITS.max_name:
        raise ValueError(f"a layer must be a printable name, or (name, shape), got {shown(entry)}")
    try:
        extents = tuple(whole("an extent", extent, 0) for extent in shape)
    except (TypeError, ValueError):
        raise ValueError(f"the shape of layer {name!r} must be whole numbers, got {shown(shape)}") from None
    return Layer(name, role_of(name, extents), depth_of(name), extents)


def checked_step(step: object, last: int) -> int:
    """Return step as an int; raises unless it is a whole number above the last one and at most MAX_STEP."""
    number = whole("step", step, 1)
    if number <= last:
        raise ValueError(f"step must be above the last recorded step {last}, got {number}; start a new run to go back")
    return number


def checked_time(time: Any) -> float:
    """Return time; raises TypeError or ValueError unless it is a finite number."""
    try:
        seconds = _one_number("time", time)
    except TypeError:
        raise TypeError(f"time must be seconds since 1970 (a datetime has timestamp()), got {shown(time)}") from None
    if not math.isfinite(seconds):
        raise ValueError(f"time must be seconds since 1970, got {seconds}")
    return seconds


def scalars_and_counts(scalars: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
    """Sort the keywords of `record` into float64 numbers and whole numbers; None is left out."""
    numbers: dict[str, float] = {}
    counts: dict[str, int] = {}
    for given, value in scalars.items():
        name = RENAMED.get(given, given)
        if value is None:
            continue
        if not name or not name.isprintable() or len(name) > DEFAULT_LIMITS.max_name:
            raise ValueError(f"the name of a scalar must be printable and at most 512 characters, got {shown(name)}")
        number = _one_number(given, value)
        if name not in COUNTS:
            numbers[name] = number
        elif not number.is_integer() or not 0 <= int(value) <= MAX_INT64:
            raise ValueError(f"{given} must be a whole number of at least 0, got {shown(value)}")
        else:
            counts[name] = int(value)
    if len(numbers) > DEFAULT_LIMITS.max_scalars:
        raise ValueError(f"a step must have at most {DEFAULT_LIMITS.max_scalars} scalars, got {len(numbers)}")
    return numbers, counts


def _one_number(name: str, value: Any) -> float:
    """A value as a float; raises TypeError that names it where it is not one real number."""
    kind = "U" if isinstance(value, str | bytes | bytearray) else getattr(getattr(value, "dtype", None), "kind", "f")
    try:
        if kind not in "cmMSU":  # of complex numbers, times and texts float() makes something too
            return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is a tensor's
        pass
    raise TypeError(f"{name} must be one number, got {shown(value)}")


def layer_numbers(record: StepRecord, table: LayerTable | None, layers: Mapping[str, Any]) -> None:
    """Put statistic → (L,) numbers into the record. None entries, or masked ones, are absent."""
    if not isinstance(layers, Mapping):
        raise TypeError(f"layers must be numbers by the name of their statistic, got {shown(layers)}")
    if not layers:
        return
    if table is None:
        raise ValueError("layers needs the recorder to know its layers: Recorder(..., layers=[names])")
    if len(layers) > DEFAULT_LIMITS.max_statistics:
        raise ValueError(f"a step must have at most {DEFAULT_LIMITS.max_statistics} statistics, got {len(layers)}")
    floats: dict[str, NDArray[Any]] = {}
    integers: dict[str, NDArray[Any]] = {}
    for name, values in layers.items():
        if not isinstance(name, str) or not name or not name.isprintable() or len(name) > DEFAULT_LIMITS.max_name:
            raise ValueError(f"the name of a statistic must be printable text, got {shown(name)}")
        array = _array(f"layers[{name!r}]", values)
        if array.dtype == object:
            array = _with_missing(name, array)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"layers[{name!r}] must be numbers, got an array of {array.dtype}")
        if array.shape != (len(table),):
            raise ValueError(f"layers[{name!r}] must have shape ({len(table)},), one per layer, got {array.shape}")
        if name in COUNT_STATISTICS:
            _check_counts(name, array)
        (integers if name in COUNT_STATISTICS else floats)[name] = array
    record.table = table
    if floats:
        record.statistics = tuple(floats)
        with np.errstate(over="ignore"):
            record.values = np.stack([np.ma.getdata(array) for array in floats.values()]).astype(np.float32)
        record.present = _present(floats)
    if integers:
        record.count_statistics = tuple(integers)
        record.counts_values = np.stack([np.ma.filled(array, 0) for array in integers.values()]).astype(np.int64)
        record.counts_present = _present(integers)


def _array(what: str, values: Any) -> NDArray[Any]:
    """Values as an array; raises TypeError that says what they are, and why they make none."""
    if isinstance(values, np.ma.MaskedArray):
        return values
    try:
        return np.asarray(values)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # rows of different lengths, a device's
        raise TypeError(f"{what} must be numbers, got {shown(values)}: {error}") from None


def _check_counts(name: str, array: NDArray[Any]) -> None:
    """Raise ValueError for a number that is no count."""
    there = np.ma.getdata(array)[~np.ma.getmaskarray(array)]
    good = there.astype(np.float64) == np.trunc(there.astype(np.float64))
    good &= (there >= 0) & (there < 2.0**63)
    if not good.all():
        raise ValueError(f"layers[{name!r}] must be whole numbers of at least 0, got {there[~good][0]}")


def _with_missing(name: str, array: NDArray[Any]) -> NDArray[Any]:
    """Turn a list with None in it into a masked array."""
    missing = np.array([item is None for item in array.ravel()], np.bool_).reshape(array.shape)
    try:
        return np.ma.array(np.where(missing, 0.0, array).astype(np.float64), mask=missing)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"layers[{name!r}] must be numbers or None, got {shown(array.tolist())}") from None


def _present(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    return np.stack([~np.ma.getmaskarray(array) for array in arrays.values()])


def spectra_of(table: LayerTable | None, spectra: Spectra) -> list[SpectrumRecord]:
    """Return the spectra of matrices (exact singular value decomposition) or of given singular values."""
    if not isinstance(spectra, Mapping):
        raise TypeError(f"spectra must be matrices or singular values by layer, got {shown(spectra)}")
    if not spectra:
        return []
    if table is None:
        raise ValueError("spectra needs the recorder to know its layers: Recorder(..., layers=[names])")
    return [_spectrum(table, key, values) for key, values in spectra.items()]


def _spectrum(table: LayerTable, key: str | tuple[str, str], values: object) -> SpectrumRecord:
    name, of = key if isinstance(key, tuple) else (key, "gradient")
    if not is_text(name, *table.names):
        raise ValueError(f"spectra names {shown(name)}, which is not among the recorder's layers")
    if not is_text(of, *SPECTRUM_OF):
        raise ValueError(f"a spectrum must be of {', '.join(SPECTRUM_OF)}, got {shown(of)}")
    layer = table.names.index(name)
    array = _array(f"spectra[{name!r}]", values)
    try:
        array = array.astype(np.float64) if array.dtype.kind in "fiubO" else np.empty(0)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(f"spectra[{name!r}] must be a matrix or its singular values, got {shown(values)}")
    if array.ndim == 2:
        rows, columns = array.shape
        finite = np.isfinite(array).all()
        sigma = np.linalg.svd(array, compute_uv=False) if finite else np.full(min(rows, columns), np.nan)
    else:
        rows, columns = _matrix(table.layers[layer], len(array))
        if (array < 0).any():
            raise ValueError(f"spectra[{name!r}] must not be negative, got {array.min()}")
        sigma = np.sort(array)[::-1]
    drawn = drawn_indices(len(sigma))
    with np.errstate(over="ignore"):
        kept = sigma[drawn].astype(np.float32)
    return SpectrumRecord(layer, of, "exact", rows, columns, aggregates(sigma), drawn, kept)


def _matrix(layer: Layer, length: int) -> tuple[int, int]:
    """Rows and columns of the layer's matrix; a square one where its shape is unknown or does not fit."""
    shape = matrix_shape(layer)
    return shape if shape is not None and min(shape) >= length else (length, length)
