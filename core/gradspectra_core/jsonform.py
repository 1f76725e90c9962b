"""The JSON form of a batch, and of numbers: NaN and ±inf are strings, null means absent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradspectra_core.checks import check_batch, check_digest
from gradspectra_core.fields import (
    MAX_SESSION,
    check_name,
    check_names,
    expect_int,
    expect_list,
    expect_object,
    gaps_from_json,
    gaps_to_json,
    layer_table_from_json,
)
from gradspectra_core.layers import LayerTable
from gradspectra_core.limits import DEFAULT_LIMITS, Limits, WireError, shown
from gradspectra_core.records import (
    AGGREGATES,
    DRAWN_SINGULAR_VALUES,
    Batch,
    Bool,
    Columns,
    Int64,
    LayerBlock,
    SpectrumBlock,
)

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_SPECTRUM_INTEGERS = ("step", "layer", "rows", "columns")


def json_number(value: float | None) -> float | str | None:
    """Return a number as it stands in JSON: itself, one of "NaN", "Infinity", "-Infinity", or null for None."""
    if value is None or math.isfinite(value):
        return value
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def number_from_json(value: object, field: str = "number") -> float | None:
    """Read what `json_number` wrote; None for null. Raises WireError for anything else, booleans included."""
    if value is None or type(value) is float:
        return value
    if isinstance(value, str) and value in _WORDS:
        return _WORDS[value]
    if type(value) is not int:
        raise WireError(field, f'must be a number, null, "NaN", "Infinity" or "-Infinity", got {shown(value)}')
    try:
        return float(value)
    except OverflowError as error:
        raise WireError(field, "must lie in the range of a float64") from error


def json_array(values: NDArray[Any], present: Bool | None = None) -> list[Any]:
    """Return an array of any shape as nested lists of JSON numbers, null where not present (None: all present)."""
    if values.ndim > 1:
        masks: Sequence[Bool | None] = [None] * len(values) if present is None else list(present)
        return [json_array(row, mask) for row, mask in zip(values, masks, strict=True)]
    numbers: list[Any] = values.tolist()
    if not np.isfinite(values).all():
        numbers = [json_number(number) for number in numbers]
    if present is not None and not present.all():
        numbers = [number if there else None for number, there in zip(numbers, present.tolist(), strict=True)]
    return numbers


def batch_to_json(batch: Batch) -> dict[str, Any]:
    """Return the JSON form of a batch as plain objects. Fields: docs/wire.md."""
    form: dict[str, Any] = {
        "session": batch.session,
        "sequence": batch.sequence,
        "complete_through": batch.complete_through,
        "steps": batch.steps.tolist(),
        "times": json_array(batch.times),
        "scalars": _named(batch.scalars.names, batch.scalars.values, batch.scalars.present),
        "counts": _named(batch.counts.names, batch.counts.values, batch.counts.present),
    }
    if batch.layer_table is not None:
        form["layer_table"] = batch.layer_table.to_json()
    if batch.layers is not None:
        block = batch.layers
        form["layers"] = {
            "digest": block.digest,
            "steps": block.steps.tolist(),
            "values": _named(block.statistics, block.values, block.present),
            "counts": _named(block.count_statistics, block.counts, block.counts_present),
        }
    if batch.spectra is not None:
        form["spectra_digest"] = batch.spectra.digest
        form["spectra"] = [_spectrum_to_json(batch.spectra, row) for row in range(len(batch.spectra.step))]
    if batch.gaps:
        form["gaps"] = gaps_to_json(batch.gaps)
    return form


def batch_from_json(value: object, limits: Limits = DEFAULT_LIMITS) -> Batch:
    """Read the JSON form of a batch from parsed JSON.

    Raises WireError, and nothing else, for what is not a valid batch within `limits`.
    """
    form = expect_object(value, "body")
    steps = _integers(expect_list(form.get("steps"), "steps", limits.max_steps), "steps")
    times = _required(_flat(form.get("times"), "times", (len(steps),)), "times")
    table = layer_table_from_json(form.get("layer_table"), limits)
    return check_batch(
        Batch(
            session=check_name(form.get("session"), "session", MAX_SESSION),
            sequence=expect_int(form.get("sequence"), "sequence", 1),
            complete_through=expect_int(form.get("complete_through"), "complete_through", 0),
            steps=steps,
            times=times,
            scalars=_columns(form.get("scalars", {}), "scalars", len(steps), limits, whole=False),
            counts=_columns(form.get("counts", {}), "counts", len(steps), limits, whole=True),
            layer_table=table,
            layers=_layers(form["layers"], table, limits) if form.get("layers") is not None else None,
            spectra=_spectra(form, table, limits) if form.get("spectra") is not None else None,
            gaps=gaps_from_json(form.get("gaps", []), limits),
        ),
        limits,
    )


def _named(names: tuple[str, ...], values: NDArray[Any], present: Bool) -> dict[str, list[Any]]:
    return {name: json_array(row, mask) for name, row, mask in zip(names, values, present, strict=True)}


def _spectrum_to_json(block: SpectrumBlock, row: int) -> dict[str, Any]:
    kept = int(block.length[row])
    form: dict[str, Any] = {name: int(getattr(block, name)[row]) for name in _SPECTRUM_INTEGERS}
    form |= {"of": block.of[row], "method": block.method[row]}
    form |= dict(zip(AGGREGATES, json_array(block.aggregates[row]), strict=True))
    form["index"] = block.index[row, :kept].tolist()
    form["singular_values"] = json_array(block.values[row, :kept])
    return form


def _columns(value: object, field: str, count: int, limits: Limits, *, whole: bool) -> Columns:
    named = expect_object(value, field)
    names = check_names(list(named), field, limits.max_name, limits.max_scalars)
    values, present = _stack(named, names, field, (count,), whole=whole)
    return Columns(names, values, present)


def _layers(value: object, table: LayerTable | None, limits: Limits) -> LayerBlock:
    form = expect_object(value, "layers")
    steps = _integers(expect_list(form.get("steps"), "layers.steps", limits.max_steps), "layers.steps")
    values = expect_object(form.get("values", {}), "layers.values")
    counts = expect_object(form.get("counts", {}), "layers.counts")
    names = check_names(list(values), "layers.values", limits.max_name, limits.max_statistics)
    count_names = check_names(list(counts), "layers.counts", limits.max_name, limits.max_statistics)
    shape = (len(steps), _layer_count(values, counts, table))
    numbers, present = _stack(values, names, "layers.values", shape, whole=False)
    narrow = _narrow(numbers)
    wholes, wholes_present = _stack(counts, count_names, "layers.counts", shape, whole=True)
    digest = _digest(form.get("digest"), table, "layers.digest")
    return LayerBlock(digest, steps, names, narrow, present, count_names, wholes, wholes_present)


def _layer_count(values: dict[str, Any], counts: dict[str, Any], table: LayerTable | None) -> int:
    """Number of layers: that of the first row given, else of the table sent along."""
    for rows in (*values.values(), *counts.values()):
        if isinstance(rows, list) and rows and isinstance(rows[0], list):
            return len(rows[0])
    return 0 if table is None else len(table)


def _digest(value: object, table: LayerTable | None, field: str) -> str:
    return table.digest if value is None and table is not None else check_digest(value, field)


def _spectra(form: dict[str, Any], table: LayerTable | None, limits: Limits) -> SpectrumBlock:
    entries = [
        (expect_object(entry, f"spectra[{row}]"), f"spectra[{row}]")
        for row, entry in enumerate(expect_list(form["spectra"], "spectra", limits.max_spectra))
    ]
    integers = {
        name: np.array([expect_int(entry.get(name), f"{field}.{name}", 0) for entry, field in entries], np.int64)
        for name in _SPECTRUM_INTEGERS
    }
    drawn = [_drawn(entry, field) for entry, field in entries]
    width = max((len(index) for index, _ in drawn), default=0)
    aggregates = [_required([entry.get(name) for name in AGGREGATES], field) for entry, field in entries]
    return SpectrumBlock(
        digest=_digest(form.get("spectra_digest"), table, "spectra_digest"),
        length=np.array([len(index) for index, _ in drawn], np.int64),
        of=tuple(check_name(entry.get("of", "gradient"), f"{field}.of", 16) for entry, field in entries),
        method=tuple(check_name(entry.get("method"), f"{field}.method", 64) for entry, field in entries),
        aggregates=np.array(aggregates, np.float64).reshape(len(entries), len(AGGREGATES)),
        index=_padded([index for index, _ in drawn], width).astype(np.int64, copy=False),
        values=_narrow(_padded([values for _, values in drawn], width)),
        **integers,
    )


def _drawn(entry: dict[str, Any], field: str) -> tuple[Int64, NDArray[np.float64]]:
    given = expect_list(entry.get("singular_values"), f"{field}.singular_values", DRAWN_SINGULAR_VALUES)
    index = _flat(entry.get("index", list(range(len(given)))), f"{field}.index", (len(given),))
    return _integers(index, f"{field}.index"), _required(given, f"{field}.singular_values")


def _padded(rows: Sequence[NDArray[Any]], width: int) -> NDArray[Any]:
    padded = np.zeros((len(rows), width), rows[0].dtype if rows else np.float64)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = values
    return padded


def _narrow(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """The same in float32, ±inf beyond its range."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _stack(
    named: dict[str, Any], names: tuple[str, ...], field: str, shape: tuple[int, ...], *, whole: bool
) -> tuple[NDArray[Any], Bool]:
    """Read named nested lists of one shape; returns values and presence, (names, *shape)."""
    # Each list is read before anything is allocated for it: what a body claims costs no memory.
    rows = [_numbers(_flat(named[name], f"{field}.{name}", shape), f"{field}.{name}", whole=whole) for name in names]
    if not rows:
        return np.zeros((0, *shape), np.int64 if whole else np.float64), np.zeros((0, *shape), np.bool_)
    values, present = (np.stack(arrays).reshape(len(names), *shape) for arrays in zip(*rows, strict=True))
    return values, present


def _flat(value: object, field: str, shape: tuple[int, ...]) -> list[Any]:
    if not isinstance(value, list) or len(value) != shape[0]:
        raise WireError(field, f"must be a list of {shape[0]} entries")
    if len(shape) == 1:
        return value
    for row in value:
        if not isinstance(row, list) or len(row) != shape[1]:
            raise WireError(field, f"must hold lists of {shape[1]} entries, one list per step")
    return [number for row in value for number in row]


def _numbers(flat: list[Any], field: str, *, whole: bool) -> tuple[NDArray[Any], Bool]:
    kinds = set(map(type, flat))
    if whole and not kinds <= {int, type(None)}:
        raise WireError(field, "must hold whole numbers and null only")
    there = np.ones(len(flat), np.bool_)
    if not kinds <= {int, float}:
        there = np.array([number is not None for number in flat], np.bool_)
        flat = [0 if number is None else number if whole else number_from_json(number, field) for number in flat]
    try:
        return np.array(flat, np.int64 if whole else np.float64), there
    except OverflowError as error:
        raise WireError(field, f"must lie in the range of {'an int64' if whole else 'a float64'}") from error


def _integers(flat: list[Any], field: str) -> Int64:
    values, present = _numbers(flat, field, whole=True)
    if not present.all():
        raise WireError(field, "must not hold null")
    return values


def _required(flat: list[Any], field: str) -> NDArray[np.float64]:
    values, present = _numbers(flat, field, whole=False)
    if not present.all():
        raise WireError(field, "must not be null or left out")
    return values
