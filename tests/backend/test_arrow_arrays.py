"""Arrow arrays made of their buffers: what goes in comes out, and nothing else is loaded for it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed (the extra export has it)")
from gradspectra_backend.arrow_arrays import lists, numbers, text

LOADS = """
import sys
import numpy as np
from gradspectra_backend.arrow import layers_table, series_table
from gradspectra_backend.columnar import as_arrow, as_parquet
from gradspectra_backend.export_tables import Cells, Table
from gradspectra_core.views import Buckets, LayerSeries, Series

kinds = {"a": "integer", "b": "number", "c": "text", "d": "integers", "e": "numbers"}
there = np.array([True, False])
cells = [Cells(np.arange(2), there), Cells(np.ones(2)), Cells(["x", "y"])]
cells += [Cells([np.arange(1), np.arange(3)]), Cells([np.ones(1), np.ones(0)])]
for written in (as_arrow, as_parquet):
    assert len(b"".join(written(Table(kinds, [cells])))) > 100
row = np.ones((1, 2))
loss = Buckets(*[row[0]] * 4, np.zeros(2, int), there)
series_table(Series("step", np.arange(2), {"loss": loss}), {"step": np.arange(2)})
layers = (("a",), ("up",), (0,))
of_layers = LayerSeries("grad_sq", "step", np.arange(2), *layers, row, row, row, np.zeros((1, 2), int), there[None])
layers_table(of_layers, {"step": np.arange(2)})
print(sorted({"pandas", "pyarrow"} & set(sys.modules)))
"""


def test_numbers_keep_their_bits_and_what_is_missing_is_null():
    odd = np.array([2**53 + 1, -5, 7])
    assert numbers(odd, np.array([True, False, True])).to_pylist() == [2**53 + 1, None, 7]
    assert numbers(odd[::2], np.array([True, True])).null_count == 0
    special = np.array([np.nan, -np.inf, -0.0, 5e-324])
    assert numbers(special).to_numpy().tobytes() == special.tobytes()
    types = {str(numbers(np.zeros(1, kind)).type) for kind in ("i4", "i8", "f4", "f8")}
    assert types == {"int32", "int64", "float", "double"}
    assert numbers(np.arange(20), np.arange(20) % 3 > 0).null_count == 7


def test_texts_and_lists_come_out_as_they_went_in():
    assert text(["Größe", "", "layers.0"]).to_pylist() == ["Größe", "", "layers.0"]
    assert text([]).to_pylist() == []
    found = lists([np.array([1, 2]), np.empty(0, np.int64), np.array([3])], np.int64)
    assert found.to_pylist() == [[1, 2], [], [3]]
    assert str(found.type) == "list<item: int64>"
    assert str(lists([np.array([1.5], np.float32)], np.float64).type) == "list<item: double>"
    with pytest.raises(TypeError, match="Cannot cast"):
        lists([np.array([1.5])], np.int64)
    for made in (numbers(np.arange(3)), text(["a", "ß"]), found):
        made.validate(full=True)


def test_no_other_library_is_loaded_to_write_a_table():
    pytest.importorskip("pandas", reason="pandas is not installed, so nothing could load it")
    done = subprocess.run([sys.executable, "-c", LOADS], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "['pyarrow']", done.stderr
