"""Series and layer values as Arrow tables: null is missing, NaN and ±inf are themselves. Needs the extra `export`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from gradspectra_core.pages import wide_array
from gradspectra_core.views import LayerSeries, Series
from numpy.typing import NDArray

from gradspectra_backend.arrow_arrays import numbers, text


def stream(table: Any) -> memoryview:
    """The table in the form of an Arrow IPC stream, written once into room of its size: to grow takes longer."""
    counted = pa.MockOutputStream()
    _write(table, counted)
    size = counted.size()
    room = wide_array((-(-size // 8),)).view(np.uint8)[:size]
    _write(table, pa.FixedSizeBufferWriter(pa.py_buffer(room)))
    return room.data.toreadonly()


def _write(table: Any, sink: Any) -> None:
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)


def series_table(series: Series, place: Mapping[str, NDArray[Any]]) -> Any:
    """One row per bucket: `place` (`step`, and the axis), and five columns per series.

    They are `name` (the mean), `name_min`, `name_max`, `name_last` and `name_nonfinite`. A series that is called as
    one of `place` has its mean under `name_mean`. The schema's metadata has `damaged` as JSON.
    """
    columns = {name: numbers(values) for name, values in place.items()}
    for name, buckets in series.series.items():
        columns[f"{name}_mean" if name in place else name] = numbers(buckets.mean, buckets.present)
        for part in ("min", "max", "last"):
            columns[f"{name}_{part}"] = numbers(getattr(buckets, part), buckets.present)
        columns[f"{name}_nonfinite"] = numbers(buckets.nonfinite)
    return pa.Table.from_arrays(
        list(columns.values()), names=list(columns), metadata={"damaged": json.dumps(series.damaged)}
    )


def layers_table(values: LayerSeries, place: Mapping[str, NDArray[Any]]) -> Any:
    """One row per layer and bucket that has a value: `place`, `layer`, `mean`, `min`, `max`, `nonfinite`.

    The schema's metadata has `statistic`, and `damaged` and `retired` as JSON.
    """
    whole = values.present.all()

    def column(cells: NDArray[Any]) -> Any:
        spread = np.broadcast_to(cells, values.present.shape)
        return numbers(spread.reshape(-1) if whole else spread[values.present])

    columns = {name: column(entries) for name, entries in place.items()}
    layer = column(np.arange(len(values.layers), dtype=np.int32)[:, None])
    columns["layer"] = pa.DictionaryArray.from_arrays(layer, text(values.layers))
    for part in ("mean", "min", "max", "nonfinite"):
        columns[part] = column(getattr(values, part))
    said = {"statistic": values.statistic, "damaged": json.dumps(values.damaged), "retired": json.dumps(values.retired)}
    return pa.Table.from_arrays(list(columns.values()), names=list(columns), metadata=said)
