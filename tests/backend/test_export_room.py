"""The room that an export takes: numbers become objects of Python a few thousand rows at a time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from gradspectra_backend.export_forms import ROWS_AT_ONCE, Format, written
from gradspectra_backend.export_tables import Cells, Table


@pytest.mark.parametrize("form", ["csv", "json"])
def test_no_more_rows_become_objects_at_once_than_are_written_together(form: Format):
    rows = 16 * ROWS_AT_ONCE
    values = np.random.default_rng(0).random(rows)
    there = np.arange(rows) % 2 > 0
    names = [f"c{at}" for at in range(4)]
    table = Table(dict.fromkeys(names, "number"), [[Cells(values, there)] * len(names)])
    lines = 0
    tracemalloc.start()
    for part in written(table, form):
        lines += part.count(b"\n")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert lines == rows + (1 if form == "csv" else 2)
    of_one_part = ROWS_AT_ONCE * len(names) * 100
    assert peak < 2 * of_one_part, f"{peak:,} bytes"
