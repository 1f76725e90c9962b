"""Records that the tests of the sending side send."""

from __future__ import annotations

import numpy as np
from gradspectra.record import SpectrumRecord, StepRecord
from gradspectra_core.layers import Layer, LayerTable

TABLE = LayerTable.of([Layer("a.weight", "linear", 0, (4, 3)), Layer("b.weight", "linear", 1, (3, 3))])


def scalar_record(step: int) -> StepRecord:
    return StepRecord(step, 1000.0 + step, {"loss": 1.0 / step}, {"examples": 8})


def layer_record(step: int, table: LayerTable = TABLE, spectra: bool = False) -> StepRecord:
    """A record with two statistics per layer; layer 1 has no update_sq. With a spectrum of layer 0 on request."""
    record = scalar_record(step)
    record.table = table
    record.statistics = ("grad_sq", "update_sq")
    record.values = np.full((2, len(table)), step, np.float32)
    record.present = np.ones((2, len(table)), np.bool_)
    record.present[1, 1] = False
    record.count_statistics = ("grad_nonfinite",)
    record.counts_values = np.zeros((1, len(table)), np.int64)
    if spectra:
        record.spectra.append(spectrum_record())
    return record


def spectrum_record(size: int = 3) -> SpectrumRecord:
    return SpectrumRecord(
        layer=0,
        of="gradient",
        method="exact",
        rows=size + 1,
        columns=size,
        aggregates=np.array([6.0, 14.0, 3.0, 98.0, 0.9, 2.0, 3.0]),
        index=np.arange(size),
        values=np.arange(size, 0, -1, dtype=np.float32),
    )
