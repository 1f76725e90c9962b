"""What an export takes: numbers become objects of Python a few thousand rows at a time, and no gap is read through."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from backend.callers import Caller, batch, layer_block, spectrum_block, table
from backend.test_export import exported
from gradspectra_backend.export_forms import ROWS_AT_ONCE, Format, written
from gradspectra_backend.export_tables import Cells, Table
from gradspectra_store import read
from gradspectra_worker.compact import compact


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


@pytest.mark.parametrize("what", ["series", "layers", "spectra"])
def test_steps_may_lie_as_far_apart_as_steps_go(caller: Caller, what: str, monkeypatch: pytest.MonkeyPatch):
    run, of = caller.start(), table()
    sent: list[int] = []
    for sequence, first in enumerate((1, 2**32, 2**40, 2**52), 1):
        steps = [first, first + 10**5, first + 2**30]
        sent += steps
        block = layer_block(of, steps, grad_sq=[[float(step), 1.0] for step in steps])
        spectrum = spectrum_block(of, first, 0, [3.0, 1.0])
        more = {"layer_table": of, "layers": block, "spectra": spectrum}
        caller.must_send(run["id"], batch(run["session"], sequence, steps, loss=[1.0] * 3, **more))
    caller.derived(run["id"], sent[-1])
    name = {"series": "read_times", "layers": "read_layers", "spectra": "find_spectra"}[what]
    real, reads = getattr(read, name), []

    def counted(*given: object) -> object:
        reads.append(given)
        return real(*given)

    monkeypatch.setattr(read, name, counted)
    for _ in range(2):
        rows = exported(caller, run["id"], "json", what=what, **({"names": "grad_sq"} if what == "layers" else {}))
        assert sorted({row["step"] for row in rows}) == (sorted(sent) if what != "spectra" else sent[::3])
        compact(caller.client.app.state.context.store, run["id"])
    assert len(reads) < 300
