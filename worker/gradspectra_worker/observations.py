"""Turn a stored batch into what the detectors see, step by step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from gradspectra_core.detectors import LayerObservation, Observation
from gradspectra_core.records import Batch, Bool, Columns, Float64, Int64

SERIES = ("loss", "grad_norm", "update_norm", "learning_rate")
"""What the detectors read of the scalars."""


def column(columns: Columns, name: str, length: int) -> tuple[Float64 | Int64, Bool]:
    """Values and presence of one column over `length` steps, each (length,); all absent where it was never sent."""
    if name not in columns.names:
        return np.zeros(length), np.zeros(length, np.bool_)
    row = columns.names.index(name)
    return columns.values[row], columns.present[row]


def observations(batch: Batch) -> Iterator[Observation]:
    """Yield one observation per step of the batch, in order."""
    length = len(batch.steps)
    series = [_optional(batch.scalars, name, length) for name in SERIES]
    was_skipped = [bool(value) for value in _optional(batch.counts, "skipped", length)]
    rows = {} if batch.layers is None else {step: row for row, step in enumerate(batch.layers.steps.tolist())}
    for i, (step, time) in enumerate(zip(batch.steps.tolist(), batch.times.tolist(), strict=True)):
        loss, grad_norm, update_norm, rate = (values[i] for values in series)
        layers = _layers(batch, rows[step]) if step in rows else None
        yield Observation(step, time, loss, grad_norm, update_norm, layers, was_skipped[i], rate)


def _optional(columns: Columns, name: str, length: int) -> list[float | None]:
    if name not in columns.names:
        return [None] * length
    values, present = column(columns, name, length)
    return [value if here else None for value, here in zip(values.tolist(), present.tolist(), strict=True)]


def _layers(batch: Batch, row: int) -> LayerObservation | None:
    block, table = batch.layers, batch.layer_table
    if block is None or table is None:
        return None
    return LayerObservation.from_rows(
        table.names,
        (),
        block.statistics,
        block.values[:, row],
        block.present[:, row],
        block.count_statistics,
        block.counts[:, row],
        block.counts_present[:, row],
    )
