"""Answers of the server in JSON, as arrays and tuples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gradspectra_core.records import Bool, Float64, Int64
from gradspectra_core.views import Spectrum
from numpy.typing import NDArray


def numbers(row: Sequence[Any]) -> tuple[Float64, Bool]:
    """Read a JSON row: numbers, "NaN", "Infinity" and "-Infinity", and null where a number is missing.

    Returns values (NaN where missing) and presence, both (N,).
    """
    present = np.array([entry is not None for entry in row], np.bool_)
    return np.array(row, np.float64), present


def place_of(answer: dict[str, Any]) -> tuple[Int64, str, NDArray[Any]]:
    """Steps, axis and where the steps lie on it."""
    axis = answer.get("axis", "step")
    steps = np.array(answer["x" if axis == "step" else "steps"], np.int64)
    return steps, axis, steps if axis == "step" else np.array(answer["x"], np.float64)


def ranges_of(answer: dict[str, Any]) -> tuple[tuple[int, int], ...]:
    """First and last steps of what could not be read back."""
    return tuple((int(first), int(last)) for first, last in answer.get("damaged", ()))


def retired_of(answer: dict[str, Any]) -> tuple[tuple[int, int, int], ...]:
    """First and last step and width of ranges of which only wider buckets are left."""
    return tuple((int(first), int(last), int(width)) for first, last, width in answer.get("retired", ()))


def spectrum_of(item: dict[str, Any]) -> Spectrum:
    """One item of GET /runs/{run}/spectra."""
    values, _ = numbers(item["singular_values"])
    whole: dict[str, Any] = {name: int(item[name]) for name in ("step", "attempt", "rows", "columns", "k90", "k99")}
    floats: dict[str, Any] = {
        name: float(item[name]) for name in ("nuclear", "frobenius_sq", "operator", "fourth", "entropy")
    }
    return Spectrum(
        layer=item["layer"],
        of=item["of"],
        method=item["method"],
        index=np.array(item["index"], np.int64),
        singular_values=values,
        **floats,
        **whole,
    )
